#!/usr/bin/env bash
# Covariates on the demo's brains: a cohort whose contrast and size of the ventricles are known, the
# demo's base model finetuned on it with and without them, samples of both, and what was measured.
#
#     bash demo/conditions.sh [FOLDER [STEPS]]        after demo/run.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-demo/out}
steps=${2:-5000}
base=$out/results/000-DiT-T-4/checkpoints/0000700.safetensors
work=$out/conditions
if [ ! -e "$base" ]; then
    echo "$base is missing; run demo/run.sh $out first" >&2
    exit 2
fi

step() {
    printf '\n[%d:%02d] $ %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
    "$@"
}

step python demo/cohort.py --contrast mixed --n 400 --seed 2 --output "$work/scans"
step python preprocess.py --input "$work/scans" --output "$work/data" --size 32 --split 320:80 \
    --labels "$work/scans/participants.tsv" --covariates ventricles:percent contrast

# the demo's VAE has seen neither this mixture nor such ventricles: its decoder is adapted
step python train_vae.py --data-path "$work/data" --init "$out/vae" --tune decoder \
    --max-steps 600 --batch-size 8 --crop 96 --lr 1e-3 --output "$work/vae"

training=(--data-path "$work/data" --vae "$work/vae" --ckpt "$base" --tune full
          --model DiT-T/4 --num-classes 1 --max-steps "$steps"
          --global-batch-size 16 --lr 1.5e-3 --lr-schedule cosine --ema-decay 0.99 --precision bf16
          --ckpt-every "$steps")
step python train.py "${training[@]}" --results-dir "$work/with" --condition-on ventricles contrast
step python train.py "${training[@]}" --results-dir "$work/without"

sampling=(--num-samples 32 --batch-size 16 --sampler ddpm --num-sampling-steps 50)
step python sample.py --ckpt "$work/with" "${sampling[@]}" --conditions cohort \
    --output "$work/samples/asked"
step python sample.py --ckpt "$work/with" "${sampling[@]}" --conditions cohort --cfg-scale 4 \
    --output "$work/samples/guided"
step python sample.py --ckpt "$work/with" "${sampling[@]}" --output "$work/samples/not-asked"
step python sample.py --ckpt "$work/without" "${sampling[@]}" --output "$work/samples/without"
step python sample.py --ckpt "$work/with" --num-sampling-steps 50 --sweep ventricles=50:200:7 \
    --condition contrast=mprage --output "$work/samples/sweep"

step python demo/conditions.py --data-path "$work/data" --output "$work/conditions.json" \
    --samples "$work/samples/asked" "$work/samples/guided"
for name in asked not-asked without; do
    step python evaluate.py --real "$work/data" --synthetic "$work/samples/$name" \
        --output "$work/evaluation/$name"
done
