// SPDX-License-Identifier: Apache-2.0

// A reverse proxy as Go's standard library gives it, set up to be fast: the yardstick of
// `tidegate bench activator`. It prints the port that it listens on and ends when its standard
// input does.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"sync"
	"time"
)

const bufferBytes = 64 << 10

// buffers lets the proxy reuse the memory through which it copies bodies.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte  { return *(b.pool.Get().(*[]byte)) }
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

func main() {
	target := flag.String("target", "", "URL of the server behind the proxy")
	flag.Parse()

	to, err := url.Parse(*target)
	if err != nil || to.Host == "" {
		log.Fatalf("-target %q: a URL such as http://127.0.0.1:8080 is needed", *target)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	// FlushInterval stays 0: the proxy flushes event streams by itself at every write, and -1 would
	// only split the head of a small answer from its body, at a fifth of the throughput.
	proxy.BufferPool = &buffers{pool: sync.Pool{New: func() any {
		p := make([]byte, bufferBytes)
		return &p
	}}}
	proxy.Transport = &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		MaxIdleConns:        0,
		MaxIdleConnsPerHost: 4096,
		DisableCompression:  true,
		ReadBufferSize:      bufferBytes,
		WriteBufferSize:     bufferBytes,
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Without this the server closes a request's body when its answer begins, while the
		// transport may still look for the body's end; it then cuts a long answer short
		// (golang/go#40747).
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			log.Print(err)
		}
		proxy.ServeHTTP(w, r)
	})
	log.Fatal((&http.Server{Handler: handler}).Serve(listener))
}
