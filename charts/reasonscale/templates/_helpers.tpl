{{- define "reasonscale.name" -}}
{{- if contains "reasonscale" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-reasonscale" .Release.Name | trunc 52 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "reasonscale.selector" -}}
app.kubernetes.io/name: reasonscale
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "reasonscale.labels" -}}
{{ include "reasonscale.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "reasonscale.serviceAccount" -}}
{{- default (include "reasonscale.name" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "reasonscale.image" -}}
{{- printf "%s:%s" (required "image.repository is missing; it must name the operator's image" .Values.image.repository) (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}

{{- define "reasonscale.rules" -}}
- apiGroups: [reasonscale.io]
  resources: [reasoningmodels]
  verbs: [get, list, watch]
- apiGroups: [reasonscale.io]
  resources: [reasoningmodels/status]
  verbs: [patch]
- apiGroups: [ray.io]
  resources: [rayservices]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [services]
  verbs: [create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, patch]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [create, patch]
{{- end }}
