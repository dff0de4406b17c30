"""The exit handler as a pipeline step. It runs whether or not the other steps succeeded."""

from kfp.dsl import HTML, Output, PipelineTaskFinalStatus

from components.step import step


@step(image="ops")
def conclude(registry: str, status: PipelineTaskFinalStatus, page: Output[HTML]):
    """Report how the run ended and which models there are now."""
    from components.pages import text_page
    from thyroid.registry.conclude import conclude as run

    lines = run(registry, status.state, status.error_message or "")
    print("\n".join(lines))
    text_page(page.path, f"Run: {status.state}", lines)
