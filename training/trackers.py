"""Where the numbers and pictures of a run are shown: TensorBoard, and Weights & Biases on request.

Each tracker has `scalars(step, values)`, `images(step, images)`, `flush()` and `close()`.
"""
import importlib.util
import secrets
import sys

from torch.utils.tensorboard import SummaryWriter

from utils.errors import UserError, shorten
from utils.escaping import printable
from utils.files import read_json, write_text

WANDB_ID_FILE = "wandb-id.json"     # in the run folder: the same W&B run when training resumes


class TensorBoard:
    """Events in the run folder.

    :param folder: run folder
    :param step: last step; what an interrupted run wrote beyond it is hidden
    """

    def __init__(self, folder, step):
        # TensorBoard opens its file without checks: nobody can put a link at a random name
        self._writer = SummaryWriter(folder, purge_step=step + 1 if step else None,
                                     filename_suffix=f".{secrets.token_hex(8)}")

    def scalars(self, step, values):
        """:param values: {name: number}"""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, step, images):
        """:param images: {name: (H, W) or (H, W, 3) uint8}"""
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC"[:image.ndim])

    def flush(self):
        self._writer.flush()

    def close(self):
        self._writer.close()


class WeightsAndBiases:
    """A mirror on Weights & Biases. If it fails, training continues without it.

    A resumed training continues the same W&B run, whose id is kept in the run folder.

    :param project: name of the project
    :param folder: run folder, in which W&B keeps its files, too
    :param flags: {name: value} of all flags, shown as the run's configuration
    """

    def __init__(self, project, folder, flags):
        self._run = None
        self._run = self._attempt(lambda: _start_wandb(project, folder, flags))

    def scalars(self, step, values):
        """:param values: {name: number}"""
        if self._run:
            self._attempt(lambda: self._run.log({**values, "step": step}))

    def images(self, step, images):
        """:param images: {name: (H, W) or (H, W, 3) uint8}"""
        if self._run:
            self._attempt(lambda: self._run.log({**_wandb_images(images), "step": step}))

    def flush(self):
        """Nothing to do: W&B sends in a process of its own."""

    def close(self):
        """Waits until W&B has everything."""
        if self._run:
            self._attempt(lambda: self._run.finish())

    def _attempt(self, act):
        """What `act` returns; after the first error nothing more is sent."""
        try:
            return act()
        except Exception as e:  # of the network, of its service, of the account: of many kinds
            self._run = None
            print(f"warning: --wandb: Weights & Biases failed ({printable(shorten(e))}); training "
                  "continues without it. `wandb login` logs in, WANDB_MODE=offline needs no "
                  "network", file=sys.stderr, flush=True)
            return None


def check_wandb(project):
    """Raises UserError if W&B is asked for and not installed.

    :param project: name of the project, or None
    """
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(f"--wandb {project}: wandb is not installed; pip install wandb, or leave "
                        "the flag out: TensorBoard shows the same")


def _start_wandb(project, folder, flags):
    import wandb  # an extra, and slow to import
    run = wandb.init(
        project=project, dir=str(folder), name=folder.name, id=_wandb_id(folder), resume="allow",
        config=flags, settings=wandb.Settings(console="off", silent=True))
    # steps are a value of their own: W&B would drop those that a resumed run computes again
    run.define_metric("*", step_metric="step")
    return run


def _wandb_id(folder):
    """The id of the run folder's W&B run, made when it is first asked for."""
    path = folder / WANDB_ID_FILE
    if not path.is_file():
        write_text(path, f'{{"id": "{secrets.token_hex(6)}"}}\n')
    return str(read_json(path)["id"])


def _wandb_images(images):
    import wandb
    return {name: wandb.Image(image) for name, image in images.items()}
