#!/usr/bin/env bash
# Submits preprocessing, training, sampling and evaluation; each starts when the one before it has
# succeeded.
#
#     SCANS=adni/ NAME=adni bash slurm/chain.sh
#
# NAME is the name of data/NAME, results/NAME, samples/NAME and evaluation/NAME in the folder ROOT
# (default: the current one). The flags of a stage go into PREPROCESS, TRAIN, SAMPLE and EVALUATE;
# the flags of sbatch for one stage into SBATCH_FOR_PREPROCESS and so on. What holds for all stages
# of your cluster goes into site.env. MULTI=1 trains on several GPUs.
# VAE is the one of the ceiling in the evaluation; by default the one that SAMPLE or else TRAIN
# names with --vae, or else ema, as in train.py.
#
# After a failure, or to add samples, run the same command again: finished stages are not repeated,
# training and sampling resume, and the evaluation is done again if volumes or settings changed.
set -eu
usage="usage: SCANS=adni/ NAME=adni bash slurm/chain.sh"
: "${SCANS:?set it to the folder of scans; $usage}"
: "${NAME:?set it to a name for the experiment; $usage}"
here=$(dirname "$0")
root=${ROOT:-.}
data=$root/data/$NAME
results=$root/results/$NAME
samples=$root/samples/$NAME
evaluation=$root/evaluation/$NAME
after=

# vae_in FLAGS: the value of --vae among the flags of a stage, the last one; or nothing
vae_in() {
    sed -nE 's/.*(^| )--vae[ =]+([^ ]+).*/\2/p' <<<"$1"
}

# submit STAGE "FLAGS OF SBATCH" FLAGS...: submits a job that waits for the one submitted before it
submit() {
    local stage=$1 given=$2
    shift 2
    after=$(SBATCH_FLAGS="${after:+--dependency=afterok:$after --kill-on-invalid-dep=yes} $given" \
        bash "$here/submit.sh" "$stage" "$@")
    after=${after%%;*}
    echo "${stage%_multi}: job $after"
}

vae=${VAE:-$(vae_in "${SAMPLE:-}")}
vae=${vae:-$(vae_in "${TRAIN:-}")}
# The variables hold several words each, so they are not quoted:
# shellcheck disable=SC2086
{
    if [ -e "$data/manifest.json" ]; then
        echo "preprocess: $data already exists"
    else
        submit preprocess "${SBATCH_FOR_PREPROCESS:-}" \
            --input "$SCANS" --output "$data" ${PREPROCESS:-}
    fi
    submit "train${MULTI:+_multi}" "${SBATCH_FOR_TRAIN:-}" \
        --data-path "$data" --results-dir "$results" \
        ${TRAIN:---ckpt weights/DiT-XL-2-512x512.pt}
    submit sample "${SBATCH_FOR_SAMPLE:-}" \
        --ckpt "$results" --output "$samples" ${SAMPLE:-}
    submit evaluate "${SBATCH_FOR_EVALUATE:-}" \
        --real "$data" --synthetic "$samples" --train "$data" --vae "${vae:-ema}" \
        --output "$evaluation" --update ${EVALUATE:-}
}
