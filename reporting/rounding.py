"""Numbers as text, with no more digits than their uncertainty lets them have."""
import math

SMALLEST_SPREAD = 1e-12     # of the numbers' size: what differs by less differs by rounding errors
MOST_DECIMALS = 10          # without an exponent


def number(x, digits=4):
    """A number of so many significant digits; a dash for None and NaN."""
    if x is None or x != x:
        return "–"
    return f"{x:.{digits}g}".replace("-", "−")


def with_span(value, pair):
    """A value and its interval, both rounded by the interval's width.

    The ends are rounded to the second significant digit of the width, the value to one more:
    0.009612 [0.001877, 0.01339] -> 0.0096 [0.002, 0.013]. An end that would become 0 gets one
    digit: it matters on which side of 0 it is.

    :param value: float or None
    :param pair: [low, high], or None
    :return: text of the value, text of the interval in brackets, after a space ("" without one)
    """
    if not pair or value is None:
        return number(value), ""
    place = _place(*pair, digits=2)
    if place is None:
        return number(value), f" [{number(pair[0])}, {number(pair[1])}]"
    ends = ", ".join(_end(end, place) for end in pair)
    return _rounded(value, place - 1), f" [{ends}]"


def with_range(mean, low, high):
    """A mean and its lowest and highest value, all to the third significant digit of their spread.

    :return: text
    """
    place = _place(low, high, digits=3)
    if place is None:
        return f"{number(mean)} ({number(low)} … {number(high)})"
    mean, low, high = (_rounded(x, place) for x in (mean, low, high))
    return f"{mean} ({low} … {high})"


def _place(low, high, digits):
    """The power of ten of the last of so many significant digits of a spread.

    :return: None where the numbers do not differ, but for rounding errors, are not finite, or have
        too many zeros to be read without an exponent
    """
    spread = high - low
    if not math.isfinite(spread) or spread <= SMALLEST_SPREAD * max(abs(low), abs(high)):
        return None
    place = math.floor(math.log10(spread)) - digits + 1
    return place if place >= -MOST_DECIMALS else None


def _end(x, place):
    """An end of an interval, rounded to this place; not to 0, unless it is 0 but for rounding."""
    text = _rounded(x, place)
    return number(x, 1) if text == "0" and abs(x) > SMALLEST_SPREAD * 10.0 ** place else text


def _rounded(x, place):
    """A number rounded to a multiple of 10 to the power of `place`, without needless zeros."""
    text = f"{round(x, -place):.{max(0, -place)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text.replace("-", "−")
