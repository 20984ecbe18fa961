{{/* What values.schema.json cannot see: values that must fit each other. */}}
{{- define "aquifer.validate" -}}
{{- if gt (len .Release.Name) 30 }}
{{- fail "the name of the release has more than 30 characters: names of pods would be too long" }}
{{- end }}
{{- range $role, $settings := .Values.config }}
{{- if dig "auth" "enabled" false $settings }}
{{- fail (printf "config.%s: set auth.enabled of the chart, not auth.enabled of the configuration: the chart checks what it needs" $role) }}
{{- end }}
{{- end }}
{{- include "aquifer.validate.plaintext" . }}
{{- if eq .Values.mode "cluster" }}
{{- if and .Values.auth.enabled (not .Values.tls.clients.enabled) }}
{{- fail "auth.enabled needs tls.clients.enabled in a cluster: brokers know each other by their certificates" }}
{{- end }}
{{- if and .Values.auth.enabled (eq .Values.tls.clients.clientCertificates "none") }}
{{- fail "auth.enabled needs tls.clients.clientCertificates=optional: brokers know each other by their certificates" }}
{{- end }}
{{- $bookies := int (include "aquifer.bookies" .) }}
{{- $q := .Values.broker.quorum }}
{{- if gt (int $q.ack) (int $q.write) }}
{{- fail (printf "broker.quorum: ack (%d) is more than write (%d)" (int $q.ack) (int $q.write)) }}
{{- end }}
{{- if gt (int $q.write) (int $q.ensemble) }}
{{- fail (printf "broker.quorum: write (%d) is more than ensemble (%d)" (int $q.write) (int $q.ensemble)) }}
{{- end }}
{{- if gt (int $q.ensemble) $bookies }}
{{- fail (printf "broker.quorum: ensemble (%d) is more than there are bookies (%d)" (int $q.ensemble) $bookies) }}
{{- end }}
{{- if gt (int $q.zonesMin) (int $q.write) }}
{{- fail (printf "broker.quorum: zonesMin (%d) is more than write (%d)" (int $q.zonesMin) (int $q.write)) }}
{{- end }}
{{- if and (gt (int $q.zonesMin) 1) (lt (len .Values.bookie.zones) (int $q.zonesMin)) }}
{{- fail (printf "broker.quorum: zonesMin (%d) is more than bookie.zones has (%d)" (int $q.zonesMin) (len .Values.bookie.zones)) }}
{{- end }}
{{- if gt (int .Values.pdb.bookieMaxUnavailable) (max 1 (sub (int $q.write) (int $q.ack)) | int) }}
{{- fail "pdb.bookieMaxUnavailable is more than broker.quorum.write - ack: a drain would stop writes" }}
{{- end }}
{{- if and .Values.etcd.enabled .Values.metadata.endpoints }}
{{- fail "metadata.endpoints and etcd.enabled are both set: set etcd.enabled=false to use an etcd of your own" }}
{{- end }}
{{- if and (not .Values.etcd.enabled) (not .Values.metadata.endpoints) }}
{{- fail "give metadata.endpoints, or set etcd.enabled=true" }}
{{- end }}
{{- if and (not .Values.bookie.autorecovery) (lt (int .Values.autorecovery.replicas) 1) }}
{{- fail "bookie.autorecovery=false needs autorecovery.replicas: lost copies would stay lost" }}
{{- end }}
{{- if and .Values.offloader.replicas (not (include "aquifer.coldStore" .)) }}
{{- fail "offloader.replicas needs cold.store in config.broker or config.common: it is the place of objects" }}
{{- end }}
{{- if and .Values.tls.clients.enabled (not .Values.tls.internal.enabled) }}
{{- fail "tls.clients.enabled needs tls.internal.enabled: brokers ask each other as clients, and check certificates against the authority of tls.internal" }}
{{- end }}
{{- if and .Values.broker.external.enabled (not .Values.broker.external.domain) }}
{{- fail "broker.external.enabled needs broker.external.domain: clients must have a name for each broker" }}
{{- end }}
{{- if .Values.production }}
{{- if and .Values.etcd.enabled (lt (int .Values.etcd.replicas) 3) }}
{{- fail "production: etcd.replicas is less than 3: one lost volume would be the end of all messages" }}
{{- end }}
{{- if ne .Values.bookie.antiAffinity "hard" }}
{{- fail "production: bookie.antiAffinity must be hard: bookies on one node are lost together" }}
{{- end }}
{{- if le $bookies (int $q.ensemble) }}
{{- fail (printf "production: %d bookies leave no place for a lost copy: more than broker.quorum.ensemble (%d) are needed" $bookies (int $q.ensemble)) }}
{{- end }}
{{- if lt (int $q.ack) 2 }}
{{- fail "production: broker.quorum.ack must be at least 2: an acknowledged message would be on one disk" }}
{{- end }}
{{- end }}
{{- else if .Values.production }}
{{- fail "production: mode standalone has one copy of each message" }}
{{- end }}
{{- end }}

{{/* No token and no password goes over a connection in plain text, unless the values say that it may. */}}
{{- define "aquifer.validate.plaintext" -}}
{{- $tls := .Values.tls }}
{{- if not .Values.auth.allowPlaintext }}
{{- $wayOut := "or set auth.allowPlaintext=true where something else encrypts it" }}
{{- if and .Values.auth.enabled (not $tls.clients.enabled) }}
{{- fail (printf "auth.enabled needs tls.clients.enabled: tokens would be readable on the network. Give it a Secret or tls.certManager, %s" $wayOut) }}
{{- end }}
{{- if and .Values.auth.enabled (not $tls.http.enabled) }}
{{- fail (printf "auth.enabled needs tls.http.enabled: tokens of REST and of scrapers would be readable on the network. Give it a Secret or tls.certManager, %s" $wayOut) }}
{{- end }}
{{- if and .Values.auth.scrapeTokenSecret (not $tls.http.enabled) }}
{{- fail (printf "auth.scrapeTokenSecret needs tls.http.enabled: Prometheus would send the token in plain text. Give it a Secret or tls.certManager, %s" $wayOut) }}
{{- end }}
{{- if and .Values.auth.enabled (eq .Values.mode "cluster") .Values.broker.external.enabled (not .Values.broker.external.tls.existingSecret) }}
{{- fail (printf "auth.enabled with broker.external.enabled needs broker.external.tls.existingSecret: tokens would be readable on the network outside. Give it a Secret, %s" $wayOut) }}
{{- end }}
{{- range $user := list "tests" "backup" }}
{{- if and (index $.Values $user).tokenSecret (not $tls.clients.enabled) }}
{{- fail (printf "%s.tokenSecret needs tls.clients.enabled: the token would be readable on the network. Give tls.clients a Secret or tls.certManager, %s" $user $wayOut) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.metadata }}
{{- if and .auth.existingSecret (not .tls.existingSecret) (not .auth.allowPlaintext) }}
{{- fail "metadata.auth.existingSecret needs metadata.tls.existingSecret: the password of etcd would be readable on the network. Give the Secret with ca.crt of etcd, or set metadata.auth.allowPlaintext=true where something else encrypts it" }}
{{- end }}
{{- end }}
{{- end }}
