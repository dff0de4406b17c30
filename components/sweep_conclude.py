"""The end of a search as a pipeline step."""

from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from components.step import step


@step(image="train")
def sweep_conclude(
    ranked: Input[Artifact],
    finished: list,  # type: ignore[type-arg]  # of list[int], kfp would make another type
    results: Output[Artifact],
    settings: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Write the best settings for a training, all trials and the report."""
    import shutil
    from pathlib import Path

    from thyroid import storage
    from thyroid.sweep.report import conclude

    study = Path(ranked.path).read_text()
    done = conclude(study, Path(results.path))
    shutil.copy(done.folder / "settings.json", settings.path)
    shutil.copy(done.folder / "report.html", report.path)
    # A training on the same volume or bucket can take the settings from the study.
    storage.at(study).write("settings.json", (done.folder / "settings.json").read_bytes())
    settings.metadata |= {"settings": storage.below(study, "settings.json")}
    for name in ("chosen", "default"):
        metrics.log_metric(f"{name}_auroc", done.facts[name]["auroc"]["value"])
    for name, value in done.facts["difference"].items():
        if value is not None:
            metrics.log_metric(f"difference_{name}", value)
