{{/*
Names are the same whatever the release is called, so that Helm itself refuses a second Tidegate over
the same cluster or namespace: replicas have one writer.

Each partial takes (dict "root" $ "component" "controller"|"activator"|"scheduler"|"node-agent"|"admission").
*/}}

{{- define "tidegate.selector" -}}
app.kubernetes.io/name: tidegate
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "tidegate.labels" -}}
{{ include "tidegate.selector" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Of the pods: nothing that an upgrade of the chart alone would change, so that it rolls none. */}}
{{- define "tidegate.podLabels" -}}
{{ include "tidegate.selector" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "tidegate.metadata" -}}
name: tidegate-{{ .component }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "tidegate.labels" . | nindent 2 }}
{{- end }}

{{- define "tidegate.podAnnotations" -}}
{{- if not .root.Values.monitoring.podMonitor -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .metricsPort | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- with .root.Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What the pods share of their spec. */}}
{{- define "tidegate.pod" -}}
serviceAccountName: tidegate-{{ .component }}
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- include "tidegate.podSecurity" . | nindent 2 }}
  {{- if eq .component "activator" }}
  # Clients of headless Services come to the port that they know, which may be 80.
  sysctls:
    - {name: net.ipv4.ip_unprivileged_port_start, value: "0"}
  {{- end }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "tidegate.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tidegate.podSecurity" -}}
runAsNonRoot: true
{{- /* OpenShift gives each namespace its own range of users and refuses any other. */}}
{{- if not (.root.Capabilities.APIVersions.Has "security.openshift.io/v1") }}
runAsUser: 65532
runAsGroup: 65532
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/*
What containers of our image share: image, security, environment, size.
Where these do not go by the component: "container" is the name, "resources" the size; "env" is more of it.
*/}}
{{- define "tidegate.container" -}}
name: {{ .container | default .component }}
image: {{ printf "%s:%s" .root.Values.image.repository (.root.Values.image.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  readOnlyRootFilesystem: true
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: POD_NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  - name: POD_IP
    valueFrom: {fieldRef: {fieldPath: status.podIP}}
  {{- with .env }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- range $name, $value := .root.Values.extraEnv }}
  - name: {{ $name }}
    value: {{ $value | quote }}
  {{- end }}
resources:
  {{- toYaml (.resources | default (index .root.Values .component).resources) | nindent 2 }}
{{- end }}

{{/* Pods are evicted one at a time, and a broken one never stands in the way of a drained node. */}}
{{- define "tidegate.disruption" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "tidegate.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "tidegate.selector" . | nindent 6 }}
{{- end }}
