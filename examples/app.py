"""App that steps through the iterations of a text: class probabilities, and the movement of each token.

pip install -e '.[app]'
python examples/app.py runs/quickstart
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

import gradio as gr

from hf_feedback.evaluation.report.text_steps import TextSteps, check_text_classifier, step_through
from hf_feedback.prediction.trained_model import TrainedModel
from hf_feedback.training.commands.errors import run_command

FURTHER_ITERATIONS = 2
EXAMPLES = ["Where is my parcel? It was due on Monday.", "You took the money twice.", "I cannot log in any more."]


def show(steps: TextSteps | None, k: int) -> tuple[str, dict[str, float] | None, list[tuple[str, float]]]:
    """Description of iteration k, class probabilities, and tokens with their movements."""
    return ("", None, []) if steps is None else (steps.describe(k), steps.class_probabilities(k), steps.moved_tokens(k))


def build(folder: str) -> gr.Blocks:
    """The app for the model in a folder."""
    _, model, tokenizer = TrainedModel(folder).load()
    check_text_classifier(model)
    last = model.config.num_iterations + FURTHER_ITERATIONS

    def read(text: str, k: int) -> tuple:
        steps = step_through(model, tokenizer, text, last)
        return steps, steps.chart(), *show(steps, k)

    with gr.Blocks(title="Iterations of a text") as app:
        gr.Markdown(f"# Iterations of a text\n`{folder}`, K = {model.config.num_iterations}")
        steps = gr.State()
        text = gr.Textbox(label="Text", lines=3, submit_btn="Read")
        k = gr.Slider(1, last, value=1, step=1, label="Iteration")
        change = gr.Markdown()
        with gr.Row():
            with gr.Column(min_width=300):
                probabilities = gr.Label(label="Answer", num_top_classes=5)
            with gr.Column(min_width=300):
                chart = gr.HTML(label="Probabilities by iteration")
        tokens = gr.HighlightedText(label="How far each token moved in this iteration", combine_adjacent=False)
        gr.Examples(EXAMPLES, text)
        shown = [change, probabilities, tokens]
        text.submit(read, [text, k], [steps, chart, *shown])
        k.change(show, [steps, k], shown)
    return app


def main(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(description="Steps through the iterations of a text, in the browser.")
    parser.add_argument("folder", help="Folder of a text classifier that `hf-feedback train` trained.")
    build(parser.parse_args(arguments).folder).launch()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
