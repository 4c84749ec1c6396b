{{/* The second kube-scheduler's configuration. docs/extender.md explains it. */}}
{{- define "tidegate.scheduler.config" -}}
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
# The pod is the only one: see its Deployment.
leaderElection: {leaderElect: false}
# The extender packs over all nodes, not over a sample.
percentageOfNodesToScore: 100
clientConnection: {qps: 200, burst: 400}
profiles:
  - schedulerName: {{ .Values.scheduler.name }}
extenders:
  - urlPrefix: http://127.0.0.1:8073
    filterVerb: pick
    bindVerb: bind
    preemptVerb: preempt
    nodeCacheCapable: true
    # Without it no GPU is given out.
    ignorable: false
    # More than a Binding may take.
    httpTimeout: 6s
    managedResources:
      {{- $resources := list "gpu" "gpu-mem-mib" "gpu-mem-percent" "gpu-core-percent" }}
      {{- range .Values.scheduler.migProfiles }}
      {{- $resources = append $resources (printf "mig-%s" .) }}
      {{- end }}
      {{- range $resources }}
      - {name: tidegate.dev/{{ . }}, ignoredByScheduler: true}
      {{- end }}
{{- end }}

{{/* The extender's options for placeholder pods. */}}
{{- define "tidegate.placeholders.flags" -}}
{{- with .Values.scheduler.placeholders -}}
{{- if .enabled -}}
- --placeholders
- --most-placeholders={{ .most }}
- {{ printf "--gpu-nodes=%s" .gpuNodes | quote }}
- --placeholder-image={{ .image }}
{{- end }}
{{- end }}
{{- end }}

{{/* By it the extender owns its placeholder pods. */}}
{{- define "tidegate.placeholders.env" -}}
- name: POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
{{- end }}
