{{/* What a pod needs to be a client of the cluster: where it is, a token, certificates. Each takes
     (root, values), where values have the names of Secrets: tokenSecret and clientSecret. */}}

{{- define "aquifer.client.env" -}}
- name: AQUIFER_URL
  value: {{ include "aquifer.url" .root }}
{{- if .root.Values.tls.clients.enabled }}
- name: AQUIFER_CLIENT_CA_FILE
  value: /etc/aquifer/tls/ca.crt
{{- end }}
{{- with .values.tokenSecret }}
- name: AQUIFER_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: token
{{- if not $.root.Values.tls.clients.enabled }}
# The tool sends a token in plain text only where auth.allowPlaintext says so.
- name: AQUIFER_ALLOW_PLAINTEXT_CREDENTIALS
  value: {{ $.root.Values.auth.allowPlaintext | quote }}
{{- end }}
{{- end }}
{{- if and .root.Values.tls.clients.enabled .values.clientSecret }}
- name: AQUIFER_CLIENT_CERT_FILE
  value: /etc/aquifer/client/tls.crt
- name: AQUIFER_CLIENT_KEY_FILE
  value: /etc/aquifer/client/tls.key
{{- end }}
{{- end }}

{{- define "aquifer.client.mounts" -}}
{{- if .root.Values.tls.clients.enabled }}
- name: tls
  mountPath: /etc/aquifer/tls
  readOnly: true
{{- if .values.clientSecret }}
- name: client
  mountPath: /etc/aquifer/client
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "aquifer.client.volumes" -}}
{{- if .root.Values.tls.clients.enabled }}
- name: tls
  secret:
    secretName: {{ include "aquifer.tlsSecret" (dict "root" .root "given" .root.Values.tls.clients.existingSecret "name" "clients") }}
    items: [{key: ca.crt, path: ca.crt}]
{{- with .values.clientSecret }}
- name: client
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end }}
