# Source it from the tree's root: where nothing else is named and they lie beside the checkout, it names the folders with
# Kubernetes' binaries (unpacked for this run) and with KubeRay's CRDs.
if [ -z "${REASONSCALE_E2E_BIN:-}" ] && [ -f ../shared/k8s/unpack.sh ]; then
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  if bash ../shared/k8s/unpack.sh "$unpacked/bin" >/dev/null; then export REASONSCALE_E2E_BIN="$unpacked/bin"; fi
fi
if [ -z "${REASONSCALE_KUBERAY_CRDS:-}" ] && [ -d ../shared/k8s/kuberay-crds ]; then
  REASONSCALE_KUBERAY_CRDS=$(realpath ../shared/k8s/kuberay-crds)
  export REASONSCALE_KUBERAY_CRDS
fi
