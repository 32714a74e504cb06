#!/usr/bin/env bash
# The whole pipeline on a CPU: made-up brains in two contrasts, a small VAE, a small DiT pretrained
# on the first contrast and finetuned by DiffFit on the second, a refiner, samples, NIfTIs,
# evaluation. Every step is the command line that a user would type.
#
#     make demo        or        bash demo/run.sh [FOLDER [SIZE]]
#
# SIZE is the side of the volumes in voxels: 32, or larger where there is time.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-demo/out}
size=${2:-32}
if [ -e "$out" ] && [ ! -e "$out/.mosaicdit-demo" ]; then
    echo "$out exists and is not a demo folder; name another" >&2
    exit 2
fi
rm -rf "$out"
mkdir -p "$out"
touch "$out/.mosaicdit-demo"
SECONDS=0

step() {
    printf '\n[%d:%02d] $ %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
    "$@"
}

# bf16 is twice as fast on processors that compute in it, and slower on others
precision=fp32
if grep -qs avx512_bf16 /proc/cpuinfo; then precision=bf16; fi

# Two cohorts from the MNI152 template: one to pretrain on, one to transfer to
step python demo/cohort.py --contrast flash --n 48 --seed 0 --output "$out/scans/flash"
step python demo/cohort.py --contrast mprage --n 48 --seed 1 --output "$out/scans/mprage"
step python preprocess.py --input "$out/scans/flash" --output "$out/data/flash" --size "$size" \
    --split 40:8
step python preprocess.py --input "$out/scans/mprage" --output "$out/data/mprage" --size "$size" \
    --split 32:16

# The autoencoder, and what it loses
step python train_vae.py --data-path "$out/data/flash" "$out/data/mprage" --init tiny --tune all \
    --max-steps 2200 --lr 3e-3 --crop 48 --precision $precision --output "$out/vae"

# The stand-in for DiT-XL/2-512: a small DiT, all of it trained, on the first contrast
step python train.py --data-path "$out/data/flash" --vae "$out/vae" --ckpt none --tune full \
    --model DiT-T/4 --num-classes 1 --base-grid 48 --max-steps 700 --global-batch-size 16 \
    --lr 1.5e-3 --lr-schedule cosine --ema-decay 0.99 --precision $precision --ckpt-every 700 \
    --results-dir "$out/results"
base=$out/results/000-DiT-T-4/checkpoints/0000700.safetensors

# DiffFit: the second contrast by biases, class table and scale vectors alone
step python train.py --data-path "$out/data/mprage" --vae "$out/vae" --ckpt "$base" --tune difffit \
    --gamma-blocks 4 --model DiT-T/4 --num-classes 1 --max-steps 300 --global-batch-size 16 \
    --lr 1e-2 --lr-schedule cosine --ema-decay 0.98 --precision $precision --ckpt-every 300 \
    --results-dir "$out/results"
tuned=$out/results/001-DiT-T-4/checkpoints/0000300.safetensors

# The refiner, which makes the slices of a volume fit together
step python train_refiner.py --data-path "$out/data/mprage" --vae "$out/vae" --ckpt "$tuned" \
    --max-steps 600 --crop 16 --precision $precision --output "$out/refiner"

# Samples of both models; those of the finetuned one also refined
sampling=(--num-samples 32 --batch-size 16 --sampler ddpm --num-sampling-steps 50
          --precision $precision)
step python sample.py --ckpt "$base" "${sampling[@]}" --output "$out/samples/base"
step python sample.py --ckpt "$tuned" "${sampling[@]}" --output "$out/samples/difffit"
step python postprocess.py --input "$out/samples/difffit" --refiner "$out/refiner" \
    --output "$out/nifti/refined"
step python postprocess.py --input "$out/samples/difffit" --refiner "$out/refiner" \
    --restore-shape --output "$out/nifti/restored"

# Held-out real scans against: other real ones, the finetuned model's samples as they are and
# refined, the base model's
step python evaluate.py --real "$out/data/mprage" --synthetic "$out/data/mprage" \
    --synthetic-split train --output "$out/evaluation/real"
step python evaluate.py --real "$out/data/mprage" --synthetic "$out/samples/difffit" \
    --train "$out/data/mprage" --vae "$out/vae" --output "$out/evaluation/difffit"
step python evaluate.py --real "$out/data/mprage" --synthetic "$out/nifti/refined" \
    --train "$out/data/mprage" --vae "$out/vae" --vae-layouts rgb --refiner "$out/refiner" \
    --output "$out/evaluation/refined"
step python evaluate.py --real "$out/data/mprage" --synthetic "$out/samples/base" \
    --output "$out/evaluation/base"
step python demo/summary.py "$out"
printf '\nDone in %d:%02d.\n' $((SECONDS / 60)) $((SECONDS % 60))
