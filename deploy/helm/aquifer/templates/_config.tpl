{{/* The configuration of each role, from values to a table. What depends on the pod is in arguments
     (its names), and what is secret in files and variables. */}}

{{/* Files of a certificate in a Secret that is mounted at a directory, with or without authorities. */}}
{{- define "aquifer.config.port" -}}
cert_file: {{ .directory }}/tls.crt
key_file: {{ .directory }}/tls.key
{{- end }}

{{- define "aquifer.config.http" -}}
listen: 0.0.0.0:{{ .port }}
{{- if .root.Values.tls.http.enabled }}
tls:
  {{- include "aquifer.config.port" (dict "directory" "/etc/aquifer/tls/http") | nindent 2 }}
{{- end }}
{{- end }}

{{- define "aquifer.config.grpc" -}}
listen: 0.0.0.0:7650
{{- with .Values.tls.clients }}
{{- if .enabled }}
tls:
  {{- include "aquifer.config.port" (dict "directory" "/etc/aquifer/tls/clients") | nindent 2 }}
  client_certificates: {{ .clientCertificates }}
  {{- if ne .clientCertificates "none" }}
  client_ca_file: /etc/aquifer/tls/client-ca/ca.crt
  {{- end }}
{{- end }}
{{- end }}
{{- if and (eq .Values.mode "cluster") .Values.broker.external.enabled }}
listeners:
  - name: {{ .Values.broker.external.listener }}
    listen: 0.0.0.0:{{ .Values.broker.external.port }}
    {{- if .Values.broker.external.tls.existingSecret }}
    tls:
      {{- include "aquifer.config.port" (dict "directory" "/etc/aquifer/tls/external") | nindent 6 }}
    {{- end }}
{{- end }}
{{- end }}

{{- define "aquifer.config.auth" -}}
{{- with .Values.auth }}
auth:
  enabled: {{ .enabled }}
  super_users: {{ toJson .superUsers }}
{{- end }}
{{- end }}

{{/* Metrics of processes without clients are for those that scrape brokers. */}}
{{- define "aquifer.config.metrics" -}}
{{- if .Values.auth.scrapeTokenSecret }}
auth:
  scrape_token_file: /etc/aquifer/scrape/token
{{- end }}
{{- end }}

{{/* What all processes of a cluster have. (root, role) */}}
{{- define "aquifer.config.cluster" -}}
cluster: {{ include "aquifer.clusterName" .root | quote }}
metadata: {{ include "aquifer.metadata" .root }}
allow_remote: true
etcd:
  # etcd starts with the release, or is away while its nodes are.
  wait_ms: {{ mul (div (int (index .root.Values .role).startupSeconds) 2) 1000 }}
{{- with .root.Values.metadata }}
{{- if not $.root.Values.etcd.enabled }}
  {{- if .auth.existingSecret }}
  password_file: /etc/aquifer/etcd-auth/password
  {{- end }}
  {{- if .tls.existingSecret }}
  ca_file: /etc/aquifer/tls/etcd/ca.crt
  {{- if .tls.clientCertificate }}
  cert_file: /etc/aquifer/tls/etcd/tls.crt
  key_file: /etc/aquifer/tls/etcd/tls.key
  {{- end }}
  {{- with .tls.serverName }}
  server_name: {{ . }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- if .root.Values.tls.internal.enabled }}
internal_tls:
  {{- include "aquifer.config.port" (dict "directory" "/etc/aquifer/tls/internal") | nindent 2 }}
  ca_file: /etc/aquifer/tls/internal/ca.crt
{{- end }}
{{- end }}

{{/* (root, role) */}}
{{- define "aquifer.config.telemetry" -}}
telemetry:
  service_name: aquifer-{{ .role }}
  {{- with .root.Values.tracing.endpoint }}
  otlp_endpoint: {{ . }}
  {{- end }}
{{- end }}

{{- define "aquifer.config.bookie" -}}
{{- include "aquifer.config.cluster" (dict "root" . "role" "bookie") }}
{{ include "aquifer.config.telemetry" (dict "root" . "role" "bookie") }}
{{ include "aquifer.config.metrics" . }}
data_dir: /data
http:
  {{- include "aquifer.config.http" (dict "root" . "port" 7681) | nindent 2 }}
bookie_api:
  listen: 0.0.0.0:7651
autorecovery:
  enabled: {{ .Values.bookie.autorecovery }}
{{- if .Values.bookie.journal.separate }}
bookie:
  journal_dir: /journal/journal
{{- end }}
{{- end }}

{{- define "aquifer.config.broker" -}}
{{- include "aquifer.config.cluster" (dict "root" . "role" "broker") }}
{{ include "aquifer.config.telemetry" (dict "root" . "role" "broker") }}
{{ include "aquifer.config.auth" . }}
http:
  {{- include "aquifer.config.http" (dict "root" . "port" 7680) | nindent 2 }}
quorum:
  ensemble: {{ int .Values.broker.quorum.ensemble }}
  write: {{ int .Values.broker.quorum.write }}
  ack: {{ int .Values.broker.quorum.ack }}
ledger:
  zones_min: {{ int .Values.broker.quorum.zonesMin }}
protocols:
  grpc:
    {{- include "aquifer.config.grpc" . | nindent 4 }}
{{- if .Values.offloader.replicas }}
cold:
  offload_by: offloaders
{{- end }}
{{- end }}

{{/* Its place of objects is that of the brokers. */}}
{{- define "aquifer.config.offloader" -}}
{{- include "aquifer.config.cluster" (dict "root" . "role" "offloader") }}
{{ include "aquifer.config.telemetry" (dict "root" . "role" "offloader") }}
{{ include "aquifer.config.metrics" . }}
http:
  {{- include "aquifer.config.http" (dict "root" . "port" 7683) | nindent 2 }}
{{- with dig "cold" (dict) .Values.config.broker }}
cold:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "aquifer.config.autorecovery" -}}
{{- include "aquifer.config.cluster" (dict "root" . "role" "autorecovery") }}
{{ include "aquifer.config.telemetry" (dict "root" . "role" "autorecovery") }}
{{ include "aquifer.config.metrics" . }}
http:
  {{- include "aquifer.config.http" (dict "root" . "port" 7682) | nindent 2 }}
{{- end }}

{{- define "aquifer.config.standalone" -}}
{{- include "aquifer.config.telemetry" (dict "root" . "role" "standalone") }}
{{ include "aquifer.config.auth" . }}
data_dir: /data
allow_remote: true
http:
  {{- include "aquifer.config.http" (dict "root" . "port" 7680) | nindent 2 }}
protocols:
  grpc:
    advertised_url: {{ include "aquifer.url" . }}
    {{- include "aquifer.config.grpc" . | nindent 4 }}
{{- end }}

{{/* The file of a role. (root, role) */}}
{{- define "aquifer.config.file" -}}
{{- $made := include (printf "aquifer.config.%s" .role) .root | fromYaml -}}
{{- if $made.Error }}{{ fail $made.Error }}{{ end -}}
{{- $given := index .root.Values.config .role | deepCopy -}}
{{- $common := .root.Values.config.common | deepCopy -}}
{{- include "aquifer.toml" (dict "prefix" "" "table" (mustMergeOverwrite $made $common $given)) -}}
{{- end }}

{{/* The place of objects of brokers; empty without one. */}}
{{- define "aquifer.coldStore" -}}
{{- $cold := mustMergeOverwrite (dict) (dig "cold" (dict) .Values.config.common) (dig "cold" (dict) .Values.config.broker) -}}
{{- dig "store" "" $cold -}}
{{- end }}
