#!/usr/bin/env bash
# Submits preprocessing, training, sampling and evaluation; each starts when the one before it has
# succeeded.
#
#     SCANS=adni/ NAME=adni bash slurm/chain.sh
#
# NAME is the name of data/NAME, results/NAME, samples/NAME and evaluation/NAME in the folder ROOT
# (default: the current one). The flags of a stage go into PREPROCESS, TRAIN, SAMPLE and EVALUATE;
# the flags of sbatch for one stage into SBATCH_FOR_PREPROCESS and so on, and for all stages into
# the variables that sbatch itself reads (SBATCH_ACCOUNT, SBATCH_PARTITION, ...). MULTI=1 trains on
# several GPUs. Finished stages are not repeated: after a failure, run the same command again.
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

# submit STAGE FILE FLAGS...: submits a job that waits for the one submitted before it
submit() {
    local stage=$1
    shift
    after=$(sbatch --parsable \
        ${after:+--dependency=afterok:$after --kill-on-invalid-dep=yes} "$@")
    after=${after%%;*}
    echo "$stage: job $after"
}

# The variables hold several words each, so they are not quoted:
# shellcheck disable=SC2086
{
    if [ ! -e "$data/manifest.json" ]; then
        submit preprocess ${SBATCH_FOR_PREPROCESS:-} "$here/preprocess.sbatch" \
            --input "$SCANS" --output "$data" ${PREPROCESS:-}
    fi
    submit train ${SBATCH_FOR_TRAIN:-} "$here/train${MULTI:+_multi}.sbatch" \
        --data-path "$data" --results-dir "$results" \
        ${TRAIN:---ckpt weights/DiT-XL-2-512x512.pt}
    submit sample ${SBATCH_FOR_SAMPLE:-} "$here/sample.sbatch" \
        --ckpt "$results" --output "$samples" ${SAMPLE:-}
    if [ ! -e "$evaluation/metrics.json" ]; then
        submit evaluate ${SBATCH_FOR_EVALUATE:-} "$here/evaluate.sbatch" \
            --real "$data" --synthetic "$samples" --train "$data" \
            --output "$evaluation" ${EVALUATE:-}
    fi
}
