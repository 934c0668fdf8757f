#!/usr/bin/env bash
# Train everything in one go, within a time: VAE, latents, then both flow models one after the other, and their sheets.
#
#     tools/garments/train_all.sh garments256.zip taef2.safetensors runs cuda 120 100
#
# The last two are seconds: for the VAE, and for each flow model. Needs torch, diffusers and safetensors, and the
# package under its name (installed, or a folder comfyui_deepinv on PYTHONPATH). VAE_OPTIONS and FLOW_OPTIONS are handed
# on. A part that fails is tried once more, from its last state; the parts that are done stay where they are.
set -uo pipefail
data=$1 start=$2 runs=$3 device=$4 vae_seconds=$5 flow_seconds=$6
module=comfyui_deepinv.tools.garments

twice() {
    "$@" || "$@" || echo "FAILED: $*" >&2
}

# shellcheck disable=SC2086
twice python3 -m $module.vae "$data" "$runs/vae" --start "$start" --device "$device" --seconds "$vae_seconds" ${VAE_OPTIONS:-}
twice python3 -m $module.latents "$data" "$runs/latents" --vae "$runs/vae/vae.safetensors" --device "$device"
for kind in sd3 flux; do
    # shellcheck disable=SC2086
    twice python3 -m $module.flow_model $kind "$runs/latents/latents.safetensors" "$runs/$kind" --device "$device" \
        --seconds "$flow_seconds" ${FLOW_OPTIONS:-}
    twice python3 -m $module.sheet $kind "$runs/$kind/model.safetensors" "$runs/samples_$kind.png" \
        --vae "$runs/vae/vae.safetensors" --device "$device"
done
