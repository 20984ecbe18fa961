{{/* One pod for all roles: security, probes, environment, files. */}}

{{- define "aquifer.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "aquifer.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What every pod has, also those of hooks. */}}
{{- define "aquifer.podBasics" -}}
enableServiceLinks: false
automountServiceAccountToken: false
securityContext:
  {{- include "aquifer.podSecurity" . | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "aquifer.containerBasics" -}}
image: {{ include "aquifer.ownImage" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "aquifer.containerSecurity" . | nindent 2 }}
{{- end }}

{{/* (root, role, extra) */}}
{{- define "aquifer.env" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- $secret := .root.Values.metadata.auth.existingSecret }}
{{- if and $secret (ne .role "standalone") (not .root.Values.etcd.enabled) }}
- name: AQUIFER_ETCD_USER
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: username
{{- end }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The Secrets of a role by the directory below /etc/aquifer where they are, as a YAML map.
     `role` is bookie, broker, autorecovery, offloader, tool or standalone. (root, role) */}}
{{- define "aquifer.secrets" -}}
{{- $root := .root -}}
{{- $tls := .root.Values.tls -}}
{{- $cluster := ne .role "standalone" -}}
{{- $serves := or (eq .role "broker") (eq .role "standalone") -}}
{{- if and $cluster (not .root.Values.etcd.enabled) }}
{{- with .root.Values.metadata.auth.existingSecret }}
etcd-auth: {{ . }}
{{- end }}
{{- with .root.Values.metadata.tls.existingSecret }}
tls/etcd: {{ . }}
{{- end }}
{{- end }}
{{- if and $cluster $tls.internal.enabled }}
tls/internal: {{ include "aquifer.tlsSecret" (dict "root" $root "given" (index $tls.internal.existingSecrets .role) "name" .role) }}
{{- end }}
{{- if and $tls.http.enabled (ne .role "tool") }}
tls/http: {{ include "aquifer.tlsSecret" (dict "root" $root "given" $tls.http.existingSecret "name" "http") }}
{{- end }}
{{- if and .root.Values.auth.scrapeTokenSecret (has .role (list "bookie" "autorecovery" "offloader")) }}
scrape: {{ .root.Values.auth.scrapeTokenSecret }}
{{- end }}
{{- if and $serves $tls.clients.enabled }}
tls/clients: {{ include "aquifer.tlsSecret" (dict "root" $root "given" $tls.clients.existingSecret "name" "clients") }}
{{- if ne $tls.clients.clientCertificates "none" }}
tls/client-ca: {{ required "tls.clients.clientCaSecret: give the Secret with the authorities of clients' certificates" $tls.clients.clientCaSecret }}
{{- end }}
{{- end }}
{{- if and (eq .role "broker") .root.Values.broker.external.enabled }}
{{- with .root.Values.broker.external.tls.existingSecret }}
tls/external: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* (root, role, config: the role whose file is mounted) */}}
{{- define "aquifer.fileMounts" -}}
- name: config
  mountPath: /etc/aquifer/config
  readOnly: true
{{- range $directory, $secret := include "aquifer.secrets" . | fromYaml }}
- name: {{ $directory | replace "/" "-" }}
  mountPath: /etc/aquifer/{{ $directory }}
  readOnly: true
{{- end }}
{{- end }}

{{/* The same volumes. Keys may be read by the group of the pod and by no other user. */}}
{{- define "aquifer.fileVolumes" -}}
- name: config
  configMap:
    name: {{ include "aquifer.fullname" .root }}-{{ .config }}
{{- range $directory, $secret := include "aquifer.secrets" . | fromYaml }}
- name: {{ $directory | replace "/" "-" }}
  secret:
    secretName: {{ $secret }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "aquifer.httpGet" -}}
httpGet:
  path: {{ .path }}
  port: http
  {{- if .root.Values.tls.http.enabled }}
  scheme: HTTPS
  {{- end }}
{{- end }}

{{/* The HTTP port opens before anything that takes long: the startup probe waits for the process alone,
     and liveness does not fail while a journal is replayed or etcd is away, but only when storage has
     failed, where a restart is right. Readiness tells when the process serves. */}}
{{- define "aquifer.probes" -}}
startupProbe:
  {{- include "aquifer.httpGet" (dict "root" .root "path" "/healthz") | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: {{ divf (int .seconds) 2 | ceil | int }}
livenessProbe:
  {{- include "aquifer.httpGet" (dict "root" .root "path" "/healthz") | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  {{- include "aquifer.httpGet" (dict "root" .root "path" "/readyz") | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}

{{/* The pod template of a role.
     (root, role, values, args, ports: map name to port, mounts, affinity) */}}
{{- define "aquifer.pod" -}}
{{- $root := .root -}}
{{- $files := dict "root" .root "role" .role "config" .role -}}
{{- $http := index .ports "http" -}}
metadata:
  labels:
    {{- include "aquifer.selector" (dict "root" .root "component" .role) | nindent 4 }}
    {{- with .values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "aquifer.config.file" (dict "root" .root "role" .role) | sha256sum }}
    {{- if .root.Values.monitoring.annotations }}
    prometheus.io/scrape: "true"
    prometheus.io/port: {{ $http | quote }}
    prometheus.io/path: /metrics
    {{- if .root.Values.tls.http.enabled }}
    prometheus.io/scheme: https
    {{- end }}
    {{- end }}
    {{- with .values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "aquifer.podBasics" .root | nindent 2 }}
  terminationGracePeriodSeconds: {{ int .values.terminationGracePeriodSeconds }}
  {{- with .values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .nodeSelector | default .values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .placement }}
  {{- . | nindent 2 }}
  {{- end }}
  initContainers:
    # A setting that means nothing stops the roll here, with its name in the log.
    - name: check-config
      {{- include "aquifer.containerBasics" .root | nindent 6 }}
      args:
        {{- toYaml (append .args "--check-config") | nindent 8 }}
      env:
        {{- include "aquifer.env" (dict "root" .root "role" .role "extra" .values.extraEnv) | nindent 8 }}
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      volumeMounts:
        {{- include "aquifer.fileMounts" $files | nindent 8 }}
  containers:
    - name: {{ .role }}
      {{- include "aquifer.containerBasics" .root | nindent 6 }}
      args:
        {{- toYaml .args | nindent 8 }}
      env:
        {{- include "aquifer.env" (dict "root" .root "role" .role "extra" .values.extraEnv) | nindent 8 }}
      ports:
        {{- range $name, $port := .ports }}
        - name: {{ $name }}
          containerPort: {{ $port }}
        {{- end }}
      {{- include "aquifer.probes" (dict "root" .root "seconds" .values.startupSeconds) | nindent 6 }}
      {{- if .values.preStopSeconds }}
      # Endpoints go before the hand-over begins. The binary itself needs no signal from here: a second
      # one would cut its stop short.
      lifecycle:
        preStop:
          sleep:
            seconds: {{ int .values.preStopSeconds }}
      {{- end }}
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      volumeMounts:
        {{- include "aquifer.fileMounts" $files | nindent 8 }}
        - name: tmp
          mountPath: /tmp
        {{- with .mounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with .values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "aquifer.fileVolumes" $files | nindent 4 }}
    - name: tmp
      emptyDir: {}
    {{- with .values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Spread over zones and nodes. (root, role, nodes: hard, soft or none) */}}
{{- define "aquifer.placement" -}}
{{- $selector := include "aquifer.selector" (dict "root" .root "component" .role) -}}
topologySpreadConstraints:
  - topologyKey: topology.kubernetes.io/zone
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- $selector | nindent 8 }}
{{- if ne .nodes "none" }}
affinity:
  podAntiAffinity:
    {{- if eq .nodes "hard" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- $selector | nindent 12 }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- $selector | nindent 14 }}
    {{- end }}
{{- end }}
{{- end }}

{{/* A claim template: its labels never change. (name, size, class) */}}
{{- define "aquifer.claim" -}}
- metadata:
    name: {{ .name }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .class }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .size }}
{{- end }}
