module tidegate.dev/bench/proxy

go 1.21
