# Sourced by the job files: goes to the repository, reads site.env and makes `python` the right one.
cd "${MOSAICDIT:-$SLURM_SUBMIT_DIR}"
# shellcheck source=site.env
. "${SITE_ENV:-slurm/site.env}"
cd "${MOSAICDIT:-$PWD}"
set +u  # scripts of modules and conda use variables that are not set
for module in $MODULES; do
    module load "$module"
done
if [ -n "$CONDA_ENV" ]; then
    eval "$(conda shell.bash hook)"
    conda activate "$CONDA_ENV"
else
    PATH="$PWD/.venv/bin:$PATH"
fi
set -u
