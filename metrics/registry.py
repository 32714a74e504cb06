"""The metrics that evaluate.py computes, in the order of the report.

To add one: a file with its mathematics and a function (pool, options) -> list of Statistic, and
one entry here. The choices of --metrics, their help, the checks and the report follow.
"""
from collections.abc import Callable
from dataclasses import dataclass

from metrics import (
    anatomy,
    copies,
    inception,
    intensity,
    memorization,
    mmd,
    ms_ssim,
    smoothness,
    utility,
    volume_features,
)
from metrics.options import NotComputed
from utils.flags import flag_of


@dataclass(frozen=True)
class Metric:
    """One metric, or several that are computed together."""
    titles: dict                    # {name that --metrics takes: name in reports}
    help: str                       # what it measures
    statistics: Callable            # (Pool, MetricOptions) -> Statistics, in order
    check: Callable | None = None   # (Pool, MetricOptions), before any volume is read:
                                    #   raises NotComputed or UserError
    flags: tuple = ()               # arguments of evaluate.py that have no effect without it
    on_request: bool = False        # only computed if --metrics names it, or a flag above is given
    whole_only: Callable | None = None      # (MetricOptions) -> why the volumes of one class have
                                    #   no such number, or None; None: those of a class have one
    files: Callable | None = None   # (Pool, MetricOptions), after the statistics -> {file name:
                                    #   text} for the output folder

    def chosen(self, names):
        """Those of its names that are among `names`."""
        return [name for name in self.titles if name in names]


METRICS = (
    Metric({"ms-ssim": "MS-SSIM"}, "similarity within each set, which shows its diversity",
           ms_ssim.similarity_statistics, check=ms_ssim.check_size),
    Metric({"mmd": "MMD"}, "distance of the sets' voxels",
           mmd.mmd_statistics, flags=("mmd_batch", "mmd_range")),
    Metric({"fid": "FID", "kid": "KID", "coverage-2d": "coverage of Inception features"},
           "distances of Inception features of slices, and whether each set's volumes lie among "
           "the other's",
           inception.inception_statistics, check=inception.check_weights,
           flags=("inception_weights",)),
    Metric({"smoothness": "smoothness"}, "roughness along each axis relative to the real set",
           smoothness.smoothness_statistics),
    Metric({"histogram": "histogram"}, "distance of the intensity histograms",
           intensity.histogram_statistics),
    Metric({"frechet-3d": "Fréchet distance of 3D features", "mmd-3d": "MMD of 3D features",
            "coverage": "coverage"},
           "distances of features of a fixed random 3D network, or of --features, and whether each "
           "set's volumes lie among the other's: density, coverage, precision, recall",
           volume_features.feature_statistics, check=volume_features.check_networks,
           flags=("features",)),
    Metric({"memorization": "memorization"}, "closeness to the training set; needs --train",
           memorization.memorization_statistics, check=memorization.check_training_set,
           files=copies.copies_table),
    Metric({"anatomy": "anatomy"}, "volumes of brain structures, by a segmentation network or "
           "from tables", anatomy.anatomy_statistics, check=anatomy.check_anatomy,
           flags=("meshnet", "anatomy_real", "anatomy_synthetic"), files=anatomy.tables_of),
    Metric({"utility": "utility"}, "what a classifier learns from each set, tested on real "
           "subjects; needs --utility", utility.utility_statistics, check=utility.check_label,
           flags=("utility",), on_request=True, whole_only=utility.why_not_by_class),
)
NAMES = tuple(name for metric in METRICS for name in metric.titles)
FORMER_NAMES = {"memorisation": "memorization"}  # still accepted


def default_names(given):
    """The names that are computed if --metrics names none.

    :param given: {flag of a metric: its value}, None where it is not given
    """
    return [name for metric in METRICS for name in metric.titles
            if not metric.on_request or any(given[flag] is not None for flag in metric.flags)]


def requested(given):
    """What was asked for by name, so that it is an error if it cannot be computed.

    Without --metrics, a metric is asked for by a flag of its own.

    :param given: {"metrics": names that --metrics was given, flag of a metric: its value}, None
        where it is not given
    :return: {request as it was given: names of metrics}, such as {"--utility class": ["utility"]}
    """
    if given["metrics"]:
        return {f"--metrics {' '.join(given['metrics'])}": given["metrics"]}
    found = {}
    for metric in METRICS:
        flags = [_as_given(flag, given[flag]) for flag in metric.flags if given[flag] is not None]
        if flags:
            found[" ".join(flags)] = list(metric.titles)
    return found


def _as_given(flag, value):
    """A flag with its value, as the command line has it."""
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join([flag_of(flag), *map(str, values)])


def titles_of(names):
    """Names in reports of the metrics of these names, in the order of the report."""
    return [metric.titles[name] for metric in METRICS for name in metric.chosen(names)]


def metric_name(text):
    """A flag's type: the name of a metric; former names are translated."""
    return FORMER_NAMES.get(text, text)


def help_text():
    """All metrics with what they measure, as a phrase."""
    return ", ".join(f"{' and '.join(metric.titles)} ({metric.help})" for metric in METRICS)


def checked(names, pool, options):
    """Metrics of these names that can be computed here, before any volume is read.

    :return: list of Metric, {title: why it is not computed}
    :raises UserError: a file that a metric needs cannot be used
    """
    computable, skipped = [], {}
    for metric in METRICS:
        if not metric.chosen(names):
            continue
        try:
            if metric.check:
                metric.check(pool, options)
            computable.append(metric)
        except NotComputed as e:
            skipped.update({metric.titles[name]: str(e) for name in metric.chosen(names)})
    return computable, skipped


def of_one_class(metrics, options):
    """Those of these metrics that the volumes of one class have, too.

    :return: list of Metric, {title: why there is no such number}
    """
    reasons = {metric.titles[name]: metric.whole_only(options) for metric in metrics
               if metric.whole_only for name in metric.chosen(options.names)}
    missing = {title: reason for title, reason in reasons.items() if reason}
    kept = [metric for metric in metrics if missing.keys().isdisjoint(metric.titles.values())]
    return kept, missing
