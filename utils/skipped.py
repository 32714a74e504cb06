"""What was skipped and why, in lines for a person: one for each reason, however many share it."""


def by_reason(skipped):
    """{reason: names}, in the order in which reasons first appear.

    :param skipped: {name: reason}
    """
    found = {}
    for name, reason in skipped.items():
        found.setdefault(reason, []).append(name)
    return found


def lines_of_skipped(skipped, what):
    """A line for each reason: "FID, KID: not computed, no weights".

    :param skipped: {name: reason}
    :param what: "not computed", or the like
    """
    return [f"{', '.join(names)}: {what}, {reason}"
            for reason, names in by_reason(skipped).items()]
