{{- /* The pod that holds one card of a mixed node; empty: no group of nodes is mixed. */}}
{{- define "tidegate.reservation" -}}
{{- $mixed := false }}
{{- if and .Values.scheduler.enabled .Values.scheduler.nodeAgent.enabled }}
{{- range .Values.scheduler.nodeAgent.groups }}
{{- $mixed = or $mixed .mixed }}
{{- end }}
{{- end }}
{{- if $mixed }}
{{- $pod := dict "root" $ "component" "reservation" "resources" .Values.scheduler.nodeAgent.resources "env" "- {name: NVIDIA_DRIVER_CAPABILITIES, value: utility}" -}}
apiVersion: v1
kind: Pod
metadata:
  labels:
    {{- include "tidegate.selector" $pod | nindent 4 }}
    app.kubernetes.io/instance: {{ .Release.Name }}
spec:
  serviceAccountName: tidegate-reservation
  priorityClassName: {{ include "tidegate.reservation.priority" . }}
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with .Values.scheduler.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  securityContext:
    {{- include "tidegate.podSecurity" $pod | nindent 4 }}
  terminationGracePeriodSeconds: 5
  containers:
    - {{- include "tidegate.container" $pod | nindent 6 }}
      args: [node-agent, reserve]
{{- end }}
{{- end }}

{{- /* PriorityClasses are the cluster's: another release has its own. */}}
{{- define "tidegate.reservation.priority" -}}
tidegate-reservation-{{ .Release.Namespace }}
{{- end }}
