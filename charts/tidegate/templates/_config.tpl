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
{{- end }}
