"""The end of a run that trains nothing, as a pipeline step."""

from kfp.dsl import HTML, Output

from components.step import step


@step(image="ops")
def rest(verdict: str, registry: str, page: Output[HTML]):
    """Say why nothing is trained. The UI shows this step in place of the trainings."""
    from components.pages import text_page
    from thyroid import notify
    from thyroid.notify import words

    print(verdict)
    text_page(page.path, "No training", [verdict])
    notify.tell(words.run_unchanged(notify.present_run()), registry)
