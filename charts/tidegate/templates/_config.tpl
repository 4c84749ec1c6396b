{{/* The controller's config file. Its words are those of docs/settings.md. */}}
{{- define "tidegate.config" -}}
[controller]
api = "0.0.0.0:8070"
channel = "0.0.0.0:8071"
tick = "{{ .Values.controller.tickSeconds }}s"

[gpus]
dcgm-service = {{ .Values.gpus.dcgmService | quote }}
dcgm = {{ .Values.gpus.dcgm | toJson }}

[kubernetes]
namespaces = {{ .Values.namespaces | toJson }}
scale-kinds = {{ .Values.scaleKinds | toJson }}
{{- if .Values.keda.enabled }}

[keda]
listen = "0.0.0.0:8073"
{{- end }}
{{- if .Values.prometheus.url }}

{{ include "tidegate.config.prometheus" .Values.prometheus }}
{{- end }}
{{- end }}

{{/* Takes `.Values.prometheus`; secrets are files of a Secret that the pod mounts. */}}
{{- define "tidegate.config.prometheus" -}}
[prometheus]
url = {{ .url | quote }}
refresh = "{{ .refreshSeconds }}s"
window = "{{ .windowSeconds }}s"
stale-after = "{{ .staleSeconds }}s"
insecure-skip-verify = {{ .insecureSkipVerify }}
{{- with .username }}
username = {{ . | quote }}
{{- end }}
{{- $files := dict "bearerToken" "bearer-token-file" "password" "password-file" "ca" "ca-file" "cert" "cert-file" "key" "key-file" }}
{{- range $key, $name := $files }}
{{- with index $.secret $key }}
{{- if not $.secret.name }}
{{- fail (printf "prometheus.secret.name: missing; name the Secret that has %q, the key of prometheus.secret.%s" . $key) }}
{{- end }}
{{ $name }} = "/etc/tidegate-prometheus/{{ . }}"
{{- end }}
{{- end }}
{{- with .headers }}

[prometheus.headers]
{{- range $name, $text := . }}
{{ $name | quote }} = {{ $text | quote }}
{{- end }}
{{- end }}
{{- end }}
