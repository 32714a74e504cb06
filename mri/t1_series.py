"""Whether a converted DICOM series is a T1-weighted volume, by its BIDS sidecar.

The thresholds are rules of thumb for brains at 1.5 T to 7 T: T1 weighting needs a short echo time,
and a short repetition time or an inversion whose time is that of T1, not of fluid.
"""
import math
import re

MIN_SLICES = 20           # along any axis; below it, a localizer or a slab
MAX_ECHO_S = 0.03         # of a T1-weighted image; longer: T2 weighting
MAX_REPETITION_S = 1.3    # of one without inversion; longer: proton density or T2 weighting
MAX_INVERSION_S = 1.5     # of one with inversion; longer: fluid is suppressed, FLAIR
T1_WORDS = r"t1|mp2?rage|mpr\b|i?r?[-_ ]?f?spgr|bravo|\btfe\b|vibe|\bflash\b|mdeft"
OTHER_WORDS = (
    r"localizer|localiser|scout|survey|3[-_ ]?plane|flair|t2|\bpd\b|proton|dwi|dti|diff|adc|trace|"
    r"\bfa\b|swi\b|swan|bold|fmri|resting|\bepi\b|perf|asl\b|tof\b|angio|mra\b|field[-_ ]?map|"
    r"gre[-_ ]?field|phase|calib|inv[-_ ]?[12]\b|mip\b|screen")
OTHER_IMAGE_TYPES = {
    "LOCALIZER": "a localizer", "SCREEN SAVE": "a screenshot", "P": "a phase image",
    "PHASE": "a phase image", "PROJECTION IMAGE": "a projection", "MPR": "reformatted",
    "ADC": "a diffusion map", "FA": "a diffusion map", "TRACEW": "a diffusion map"}


def why_not_t1(sidecar, shape):
    """Why a series is no T1-weighted volume, as a short phrase; None if it is one.

    :param sidecar: dict, as dcm2niix writes it: times in seconds
    :param shape: of the converted image
    """
    return (_not_a_volume(sidecar, shape) or _of_another_type(sidecar)
            or _of_another_weighting(sidecar))


def _not_a_volume(sidecar, shape):
    modality = sidecar.get("Modality", "MR")
    if modality != "MR":
        return f"its modality is {modality}, not MR"
    if math.prod(shape[3:]) > 1:
        return f"{math.prod(shape[3:])} volumes, a series in time or of directions"
    if min(shape[:3]) < MIN_SLICES:
        return f"{min(shape[:3])} slices, fewer than {MIN_SLICES}"
    return None


def _of_another_type(sidecar):
    types = [str(word).upper() for word in sidecar.get("ImageType", ())]
    for word in types:
        if word in OTHER_IMAGE_TYPES:
            return f"{OTHER_IMAGE_TYPES[word]} (ImageType {word})"
    if "DERIVED" in types and "UNI" not in types:   # the uniform image of MP2RAGE is derived, too
        return "derived from another series (ImageType DERIVED)"
    found = re.search(OTHER_WORDS, _description(sidecar), re.IGNORECASE)
    return f"its description names another kind of image ({found[0]})" if found else None


def _of_another_weighting(sidecar):
    echo, repetition, inversion = (
        _seconds(sidecar, key) for key in ("EchoTime", "RepetitionTime", "InversionTime"))
    if echo is not None and echo > MAX_ECHO_S:
        return f"its echo time is {1000 * echo:g} ms, T2-weighted"
    if inversion is not None and inversion > MAX_INVERSION_S:
        return f"its inversion time is {1000 * inversion:g} ms, as of FLAIR"
    named_t1 = re.search(T1_WORDS, _description(sidecar), re.IGNORECASE)
    inverted = inversion is not None or "IR" in str(sidecar.get("ScanningSequence", ""))
    if repetition is not None and repetition > MAX_REPETITION_S and not (inverted or named_t1):
        return f"its repetition time is {1000 * repetition:g} ms without inversion, not T1-weighted"
    if not named_t1 and (echo is None or repetition is None):
        return "nothing says that it is T1-weighted: no echo and repetition time, no such name"
    return None


def _description(sidecar):
    return str(sidecar.get("SeriesDescription", sidecar.get("ProtocolName", "")))


def _seconds(sidecar, key):
    value = sidecar.get(key)
    return value if type(value) in (int, float) else None
