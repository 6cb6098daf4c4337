"""Compares training runs on one HTML page that needs no other file: curves, samples, scores, configs, machines.

    python -m experiments.report runs/
    python -m experiments.report runs/digits runs/sweep --out comparison.html

All runs found below the folders are shown, unfinished ones with what they have. The page is written to report.html in
the first folder if --out says nothing else.
"""

from pathlib import Path

from absl import flags

from experiments import cli, comparison

OUT = flags.DEFINE_string("out", None, "The page to write (default: report.html in the first folder).")


def main(folders: list[str]) -> None:
    if not folders:
        raise ValueError("a folder is missing: give where the runs are, as in python -m experiments.report runs/")
    out = Path(OUT.value or Path(folders[0]) / "report.html")
    if out.is_dir():
        raise ValueError(f"--out = {out}: is a folder; give the file to write, such as {out / 'report.html'}")
    count = comparison.write([Path(folder) for folder in folders], out)
    print(f"{out}: {count} run{'s' if count > 1 else ''}")


if __name__ == "__main__":
    cli.run(main, positional=True)
