{{/* Names, labels, images. */}}

{{- define "aquifer.fullname" -}}
{{- .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- end }}

{{- define "aquifer.clusterName" -}}
{{- .Values.clusterName | default .Release.Name -}}
{{- end }}

{{/* What selects pods: it never changes, so that every upgrade is possible. (root, component) */}}
{{- define "aquifer.selector" -}}
app.kubernetes.io/name: aquifer
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of objects. Templates of pods and claims have no version in theirs: they would be replaced
     or refused at each upgrade. (root, component) */}}
{{- define "aquifer.labels" -}}
{{ include "aquifer.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* (image, default tag) */}}
{{- define "aquifer.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .tag }}
{{- end -}}
{{- end }}

{{- define "aquifer.ownImage" -}}
{{- include "aquifer.image" (dict "image" .Values.image "tag" .Chart.AppVersion) -}}
{{- end }}

{{/* HOST:PORT of every member of etcd, separated by commas. */}}
{{- define "aquifer.etcdEndpoints" -}}
{{- if .Values.etcd.enabled -}}
{{- $name := printf "%s-etcd" (include "aquifer.fullname" .) -}}
{{- $hosts := list -}}
{{- range $n := until (int .Values.etcd.replicas) -}}
{{- $hosts = append $hosts (printf "%s-%d.%s.%s.svc:2379" $name $n $name $.Release.Namespace) -}}
{{- end -}}
{{- join "," $hosts -}}
{{- else -}}
{{- join "," .Values.metadata.endpoints -}}
{{- end -}}
{{- end }}

{{- define "aquifer.metadata" -}}
{{- if and (not .Values.etcd.enabled) .Values.metadata.tls.existingSecret -}}etcds{{- else -}}etcd{{- end -}}
://{{ include "aquifer.etcdEndpoints" . }}
{{- end }}

{{/* How many bookies there are, over all zones. */}}
{{- define "aquifer.bookies" -}}
{{- if .Values.bookie.zones -}}
{{- $sum := 0 -}}
{{- range .Values.bookie.zones }}{{ $sum = add $sum (int .replicas) }}{{ end -}}
{{- $sum -}}
{{- else -}}
{{- int .Values.bookie.replicas -}}
{{- end -}}
{{- end }}

{{/* The Secret of a kind of certificate: what is given, or the one that cert-manager makes.
     (root, given, name) */}}
{{- define "aquifer.tlsSecret" -}}
{{- if .given -}}
{{ .given }}
{{- else if .root.Values.tls.certManager.enabled -}}
{{ include "aquifer.fullname" .root }}-tls-{{ .name }}
{{- else -}}
{{- fail (printf "tls: give the Secret of the certificate `%s`, or set tls.certManager.enabled" .name) -}}
{{- end -}}
{{- end }}

{{/* Where clients in the Kubernetes cluster connect. */}}
{{- define "aquifer.url" -}}
{{- if .Values.tls.clients.enabled -}}https{{- else -}}http{{- end -}}
://{{ include "aquifer.fullname" . }}.{{ .Release.Namespace }}.svc:7650
{{- end }}

{{/* TOML of a table: every value stands behind its dotted key. (prefix, table) */}}
{{- define "aquifer.toml" -}}
{{- $prefix := .prefix -}}
{{- range $key, $value := .table -}}
{{- if kindIs "map" $value -}}
{{- include "aquifer.toml" (dict "prefix" (printf "%s%s." $prefix $key) "table" $value) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{ $prefix }}{{ $key }} = {{ include "aquifer.tomlValue" $value }}{{ "\n" }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A value of TOML. Numbers of a values file arrive as floating point. */}}
{{- define "aquifer.tomlValue" -}}
{{- if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . }}{{ $items = append $items (include "aquifer.tomlValue" .) }}{{ end -}}
[{{ join ", " $items }}]
{{- else if kindIs "map" . -}}
{{- $items := list -}}
{{- range $key, $value := . }}{{ $items = append $items (printf "%s = %s" $key (include "aquifer.tomlValue" $value)) }}{{ end -}}
{ {{ join ", " $items }} }
{{- else if typeIs "json.Number" . -}}
{{- . -}}
{{- else if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else if kindIs "string" . -}}
{{- . | toRawJson -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end }}
