"""metrics.json in words: report.md, a self-contained report.html, and a few lines for the terminal.

A report is a list of blocks, ("h", level, text), ("p", text), ("list", [text]), ("table", head, rows) or ("figure", file, caption),
so that both formats say the same.
"""
import base64
import html as htmllib
import re
from pathlib import Path

# N = 500 in all but the last, as printed in the table of cDPM (Peng et al. 2023, "Generating Realistic Brain MRIs via a
# Conditional Diffusion Probabilistic Model"); the last from Y. Li, "Generating 3D Brain MRIs by Parameter Efficient Finetuning of
# Diffusion Transformer". N, MS-SSIM in %, MMD, FID-A, FID-C, FID-S; –: not printed
PUBLISHED = (("3D-VAE-GAN", "500", "88.3", "5.15", "320", "247", "398"), ("3D-GAN-GP", "500", "81.0", "15.7", "141", "127", "281"),
             ("3D-α-WGAN", "500", "82.6", "13.2", "121", "116", "193"), ("CCE-GAN", "500", "81.5", "3.54", "69.4", "869", "191"),
             ("HA-GAN", "500", "36.8", "226", "477", "1090", "554"), ("3D-DPM", "500", "79.7", "15.2", "188", "–", "–"),
             ("cDPM", "500", "78.6", "3.14", "32.4", "45.8", "91.1"), ("finetuned DiT (the paper)", "32", "–", "–", "–", "279", "239"))
REAL_PUBLISHED = 78.5  # MS-SSIM of the paper's real volumes, %

FIGURES = (("montage.png", "A real and a synthetic volume, three views by three depths."),
           ("gallery.png", "The centre slices of up to eight volumes of each set."),
           ("intervals.png", "Every number with its interval, its floor (halves of the real set) and, with --vae, its ceiling."),
           ("smoothness.png", "Gradient energy along each axis over the real set's. Above 1: rougher than real. Grey: between two halves "
            "of the real set."),
           ("fid.png", "FID of subsets against 1/N, and the line that leads to N = ∞."),
           ("nearest.png", "The synthetic volumes that come nearest to a training volume, beside it."),
           ("distances.png", "Distance to the nearest training volume, synthetic against held-out real volumes. A curve left of real's "
            "can mean copying, or volumes smoother or less diverse than real ones: look at the pairs."))


def number(x, digits=4):
    if x is None or x != x:
        return "–"
    return f"{x:.{digits}g}".replace("-", "−")


def _span(pair):
    return f" [{number(pair[0])}, {number(pair[1])}]" if pair else ""


def _range(found):
    return f"{number(found['mean'])} ({number(found['low'])} … {number(found['high'])})" if found else "–"


def blocks(content, figures):
    """The report of an evaluation.

    :param content: what metrics.json holds
    :param figures: folder of its figures, already written
    """
    sets, entries, settings = content["sets"], content["metrics"], content["settings"]
    out = [("h", 1, "Evaluation"),
           ("table", ["set", "folder", "split", "volumes", "subjects", "size", "voxels, mm"],
            [[name, f"`{s['path']}`", s["split"] or "–", str(s["n"]), str(s["subjects"]), f"{content['size']}³",
              " × ".join(f"{v:.3g}" for v in s["voxel_mm"])] for name, s in sets.items()])]
    out += [("p", f"**Warning:** {w}.") for w in content["warnings"]]
    layouts = sorted({k for e in entries.values() for k in e.get("vae", {})})
    out += [("h", 2, "Numbers")] + ([numbers(entries, layouts)] if entries else [])
    out += [("p", f"**{what}** was not computed: {why}.") for what, why in content["skipped"].items()]
    notes = []
    if any("interval" in e for e in entries.values()):
        notes.append(f"In brackets: 95 % intervals by {settings['bootstrap']} bootstrap replicates over subjects, for what one would get "
                     "on average with as many volumes. A bias that falls with N is not in them. Of shares: Jeffreys' interval over the "
                     "replicates of the threshold.")
    notes.append("*Two halves of real*: the same number between random halves of the real set, mean (lowest … highest) of 20 splits by "
                 "subject: the floor. *Synthetic, as few*: real against synthetic with as many volumes as a half has, to be compared with "
                 "the floor; numbers that are biased at small N are higher in both.")
    if layouts:
        psnr = ", ".join(f"{k} {v:.2f} dB" for k, v in content["vae_psnr_db"].items())
        notes.append("*Real through VAE*: the real volumes, tiled, encoded, decoded and untiled: what samples can at best reach with this "
                     f"VAE (`{settings['vae']}`), and, `rgb` against `gray`, what it costs to put three slices into the three colours of "
                     f"a pixel. As they are the same subjects, MMD, FID and KID come out lower than for others. PSNR: {psnr}.")
    if entries:
        out += [("list", notes), ("h", 2, "What each number is"), ("list", explained(entries))]
    out += [("h", 2, "Pictures")] + [("figure", name, caption) for name, caption in FIGURES if (Path(figures) / name).is_file()]
    out += published(content)
    weights = next((e["weights"] for e in entries.values() if "weights" in e), None)
    out += [("h", 2, "How it was computed"), ("list",
            [f"seed {settings['seed']}, device {settings['device']}, " + ", ".join(f"{k} {v}" for k, v in content["versions"].items())]
            + ([f"Inception weights `{weights['file']}`, SHA-256 {weights['sha256']}"] if weights else [])
            + ["every number, setting and id: `metrics.json`"])]
    return out


def explained(entries):
    """What each number is; those that are computed alike share a line."""
    names = {}
    for e in entries.values():
        names.setdefault(e["how"], []).append(e["name"])
    return [f"**{'; '.join(same)}**: {how}." for how, same in names.items()]


def numbers(entries, layouts):
    """The table of all numbers, a row each: value and interval, aim, floor, ceiling."""
    rows = []
    for e in entries.values():
        if "target" in e:
            aim = f"real: {number(e['target']['value'])}{_span(e['target'].get('interval'))}"
        else:
            aim = e["aim"]
        value = f"**{number(e['value'])}**{_span(e.get('interval'))}"
        rows.append([e["name"], value, aim, _range(e.get("floor")), _range(e.get("at_floor_n")),
                     *(number(e.get("vae", {}).get(k)) for k in layouts)])
    return ("table", ["metric", "synthetic [95 %]", "aim", "two halves of real", "synthetic, as few"]
            + [f"real through VAE, {k}" for k in layouts], rows)


def published(content):
    """The table of published numbers with this evaluation's below, and why they cannot be compared as they stand."""
    e, n = content["metrics"], {name: s["n"] for name, s in content["sets"].items()}

    def mine(key, scale=1):
        return number(e[key]["value"] * scale) if key in e and e[key]["value"] is not None else "–"

    rows = [list(row) for row in PUBLISHED]
    rows.append([f"**this evaluation**, {n['real']} real", str(n["synthetic"]), mine("ms_ssim", 100), mine("mmd_linear"),
                 *(mine(f"fid_{v}") for v in "acs")])
    real = f" Here: {number(e['ms_ssim']['target']['value'] * 100)} %." if "ms_ssim" in e else ""
    return [("h", 2, "Beside published numbers"),
            ("table", ["model", "N", "MS-SSIM, %", "MMD", "FID-A", "FID-C", "FID-S"], rows),
            ("p", f"The paper's real volumes: MS-SSIM {REAL_PUBLISHED} %.{real}"),
            ("p", "These rows are not comparable with one another as they stand. FID falls as N grows, and at N = 32 or 500 most of it can "
             "be that bias. MMD depends on the batch it is averaged over (not printed there), on the range of intensities and on the "
             "number of voxels. MS-SSIM depends on the protocol and on the data (skull-stripped or not, registered or not, size), and says "
             "little without the real set's: a set as diverse as the real one has the real one's MS-SSIM, not the lowest. Numbers compare "
             "when data, preprocessing, N, batch, protocol and feature weights are the same.")]


def _inline_html(text):
    text = htmllib.escape(text, quote=False)
    parts = re.split(r"`([^`]+)`", text)  # code at the odd places, as it is
    for k in range(0, len(parts), 2):
        parts[k] = re.sub(r"\*([^*]+)\*", r"<i>\1</i>", re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", parts[k]))
    for k in range(1, len(parts), 2):
        parts[k] = f"<code>{parts[k]}</code>"
    return "".join(parts)


def markdown(blocks_):
    """Blocks -> Markdown whose figures are files in figures/."""
    out = []
    for kind, *rest in blocks_:
        if kind == "h":
            out.append("#" * rest[0] + " " + rest[1])
        elif kind == "p":
            out.append(rest[0])
        elif kind == "list":
            out.append("\n".join(f"- {item}" for item in rest[0]))
        elif kind == "table":
            head, rows = rest
            cells = [[c.replace("|", "\\|") for c in row] for row in [head, *rows]]
            lines = ["| " + " | ".join(row) + " |" for row in cells]
            out.append("\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]))
        else:
            out.append(f"![{rest[1]}](figures/{rest[0]})\n\n*{rest[1]}*")
    return "\n\n".join(out) + "\n"


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:13px;margin:1rem 0;display:block;overflow-x:auto}
th,td{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:left;vertical-align:top}th{border-bottom:2px solid #888}
figure{margin:1.5rem 0}figcaption{font-size:13px;color:#555}img{max-width:100%}code{background:#f3f3f3;padding:0 .2em}"""


def html(blocks_, folder):
    """Blocks -> one HTML file that needs no other: figures are embedded.

    :param folder: where figures/ lies
    """
    out = []
    for kind, *rest in blocks_:
        if kind == "h":
            out.append(f"<h{rest[0]}>{_inline_html(rest[1])}</h{rest[0]}>")
        elif kind == "p":
            out.append(f"<p>{_inline_html(rest[0])}</p>")
        elif kind == "list":
            out.append("<ul>" + "".join(f"<li>{_inline_html(item)}</li>" for item in rest[0]) + "</ul>")
        elif kind == "table":
            head, rows = rest
            first, *others = ["<tr>" + "".join(f"<{tag}>{_inline_html(c)}</{tag}>" for c in row) + "</tr>"
                              for tag, row in [("th", head), *(("td", row) for row in rows)]]
            out.append(f"<table><thead>{first}</thead><tbody>{''.join(others)}</tbody></table>")
        else:
            data = base64.b64encode((Path(folder) / "figures" / rest[0]).read_bytes()).decode()
            caption = htmllib.escape(rest[1])
            out.append(f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>')
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>MosaicDiT evaluation</title><style>{STYLE}</style></head><body>\n" + "\n".join(out) + "\n</body></html>\n")


def summary(content):
    """The main numbers as lines for the terminal."""
    width = max([len(e["name"]) for e in content["metrics"].values()], default=0)
    lines = [f"{e['name']:{width}} {number(e['value']):>10}{_span(e.get('interval'))}"
             + (f"   real {number(e['target']['value'])}{_span(e['target'].get('interval'))}" if "target" in e else "")
             for e in content["metrics"].values()]
    return lines + [f"{what}: not computed, {why}" for what, why in content["skipped"].items()]
