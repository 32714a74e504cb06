"""Which class a sample is of: one class for all, or drawn as the training set is made up."""
from dataclasses import dataclass

from utils.errors import UserError
from utils.escaping import printable, some_names
from utils.seeding import draw_weighted

COHORT = "cohort"    # value of --class-label: classes as frequent as among the training volumes
PURPOSE = 1          # of the draws of classes, apart from the noise of a sample


@dataclass(frozen=True)
class ClassChoice:
    """The class of every sample.

    :param label: index of the class, or COHORT
    :param counts: training volumes of each class; of COHORT only
    """
    label: int | str
    counts: tuple[int, ...] = ()

    def of_sample(self, seed, i):
        """Index of the class of sample i: drawn from (seed, i) alone."""
        if self.label != COHORT:
            return self.label
        return draw_weighted(self.counts, seed, i, PURPOSE)

    def indices(self):
        """The set of classes that may be sampled."""
        if self.label != COHORT:
            return {self.label}
        return {index for index, count in enumerate(self.counts) if count}

    def highest(self):
        """The highest index of a class that may be sampled."""
        return max(self.indices())

    def describe(self, names):
        """A phrase for the user.

        :param names: of the classes
        """
        if self.label != COHORT:
            return f"class {self.label} ({printable(names[self.label])})"
        total = sum(self.counts)
        shares = [f"{count / total:.1%} {name}" for name, count in zip(names, self.counts)]
        return f"classes as in training: {some_names(shares)}"


def choose_class(text, metadata, names, checkpoint, num_classes=None):
    """The class that --class-label means.

    :param text: index of a class, its name, or COHORT
    :param metadata: of the checkpoint
    :param names: of the classes, by index
    :param checkpoint: its path, for errors
    :param num_classes: that the model has; None: as many as there are names
    :return: ClassChoice
    :raises UserError: no such class, one that the model does not have, or COHORT of a checkpoint
        that does not know it
    """
    choice = _find_class(text, metadata, names, checkpoint)
    if num_classes is not None and choice.highest() >= num_classes:
        raise UserError(f"--class-label {text}: {checkpoint} names {len(names)} classes, but its "
                        f"model has {num_classes}; choose one of these, or another checkpoint")
    return choice


def _find_class(text, metadata, names, checkpoint):
    if text.isascii() and text.isdigit() and int(text) < len(names):
        return ClassChoice(int(text))
    if text in names:
        return ClassChoice(names.index(text))
    if text == COHORT:
        return ClassChoice(COHORT, _counts(metadata, names, checkpoint))
    known = some_names([f"{i} ({name})" for i, name in enumerate(names)])
    raise UserError(f"--class-label {text}: the model was trained on {known}; give one of these, "
                    f"by index or name, or {COHORT}")


def _counts(metadata, names, checkpoint):
    if "class_counts" not in metadata:
        raise UserError(f"--class-label {COHORT}: {checkpoint} was written before 0.5.0 and "
                        "does not say how frequent its classes were; name a class")
    counts = metadata["class_counts"]
    if (len(counts) != len(names) or not all(type(n) is int and n >= 0 for n in counts)
            or not sum(counts)):
        raise UserError(f"{checkpoint}: its class_counts are damaged; use another checkpoint")
    return tuple(counts)
