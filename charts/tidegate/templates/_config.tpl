{{/* The controller's config file. Its words are those of docs/settings.md. */}}
{{- define "tidegate.config" -}}
[controller]
api = "0.0.0.0:8070"
channel = "0.0.0.0:8071"
tick = "{{ .Values.controller.tickSeconds }}s"

[kubernetes]
namespaces = {{ .Values.namespaces | toJson }}
scale-kinds = [
{{- range .Values.scaleKinds }}
  { group = {{ .group | toJson }}, version = {{ .version | toJson }}, resource = {{ .resource | toJson }} },
{{- end }}
]
{{- end }}
