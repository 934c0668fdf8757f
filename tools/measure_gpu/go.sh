#!/bin/bash
# go.sh OUTPUT SECONDS [ARGUMENTS of the measurement]: in the repository's root, on a machine without a network.
# carry.py makes the folder this lies in; what is installed goes to DEEPINV_TMP (default /tmp/measure_gpu).
here=$(cd "$(dirname "$0")" && pwd) output=$1 seconds=$2; shift 2
python=${PYTHON:-python3} tmp=${DEEPINV_TMP:-/tmp/measure_gpu}
mkdir -p "$tmp/pack" "$tmp/site" "$output"; ln -sfn "$PWD" "$tmp/pack/comfyui_deepinv"
$python -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$tmp/site" \
    "$here"/wheels/*.whl || exit
cp -r "$here"/stand_ins/* "$tmp/site/"
tar xJf "$here/comfyui.tar.xz" -C "$tmp" || exit
if $python -m venv --without-pip "$tmp/venv"; then  # sees the machine's own packages after these
    {
        echo "$tmp/pack"; echo "$tmp/site"
        $python -c 'import sys; print(*[p for p in sys.path if p.endswith("-packages")], sep="\n")'
    } > "$("$tmp/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/base.pth"
    python=$tmp/venv/bin/python
else  # all but ComfyUI runs so too
    export PYTHONPATH=$tmp/pack:$tmp/site
fi
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
set -o pipefail
timeout -k 5 $((seconds + 25)) "$python" -m comfyui_deepinv.tools.measure_gpu --output "$output" --seconds "$seconds" \
    --comfyui "$tmp/ComfyUI" "$@" 2>&1 | tee "$output/log"
