"""Strangers' text in the report and the model card."""

import json
import re
import shutil

from torture.attacks.canary import Blank, attack, outcome, run
from torture.outcome import HARMLESS, SILENT

PAGE_HIT = "http://127.0.0.1:9/pwned.png"
MARKUP = (
    "</title></code></div></details></section></table></script>"
    f"<script>document.title='pwned';new Image().src='{PAGE_HIT}'</script>"
    f"<img src='{PAGE_HIT}' onerror=\"document.title='pwned'\"><svg/onload=\"document.title='pwned'\">"
    "<a href=\"javascript:document.title='pwned'\">x</a><style>*{display:none}</style><base href='http://127.0.0.1:9/'>"
    "{{ 7 * 191 }}{% raw %}${7*191}<%= 7*191 %>\u202e\u2066]]>-->\n---\nlicense: pwned\n---\n"
)


def hostile_summary(run_name: str = "dpo") -> dict:
    """Return a summary in which whatever a stranger can write says `MARKUP`."""
    from test_report import add_model_judge, reject_rows, sample_summary

    summary = sample_summary([run_name])
    add_model_judge(summary, "other", right=40, reason=MARKUP)
    reject_rows(summary, detail=MARKUP, source=MARKUP)
    strangers = {"prompt", "text", "content", "id", "detail", "source", "reason", "topic", "pre_tokenizer", "name_of"}

    def spoil(value):
        if isinstance(value, list):
            return [spoil(item) for item in value]
        if isinstance(value, dict):
            return {
                key: MARKUP + item if key in strangers and isinstance(item, str) else spoil(item)
                for key, item in value.items()
            }
        return value

    summary = spoil(summary)
    summary["data"]["train"]["topics"] = {
        MARKUP + name: count for name, count in summary["data"]["train"]["topics"].items()
    }
    summary["model"]["source"] = {"path": MARKUP}
    return summary


@attack("markup, scripts and template code in every text of strangers", "render_report")
def markup_in_report(folder, model):
    from test_report import visit

    if not (browser := shutil.which("chromium") or shutil.which("google-chrome")):
        return HARMLESS, "no browser here, so nothing was looked at"
    (folder / "summary.json").write_text(json.dumps(hostile_summary()))
    page = folder / "report.html"
    files = ["--summary", folder / "summary.json", "--template", "report/template.html", "--report", page]
    result = run("render_report", *files)
    found = outcome(result, page)
    naive = folder / "naive.html"
    naive.write_text(f"<!doctype html><title>x</title>{MARKUP}")
    seen = [visit(browser, one, folder, "--dump-dom") for one in (naive, page)]
    if "<title>pwned" not in seen[0]["printed"] or not any("9/" in hit for hit in seen[0]["requests"]):
        raise Blank("a careless page is not hurt")
    title = re.search(r"<title>.*?</title>", page.read_text())[0]
    if title not in seen[1]["printed"] or seen[1]["requests"] or seen[1]["console"]:
        return SILENT, f"{seen[1]['requests']} {seen[1]['console']} {seen[1]['printed'][:300]}"
    if "1337" in seen[1]["printed"] or seen[1]["printed"].count("&lt;script&gt;") < 20:
        return SILENT, "template code was executed, or the texts are not there"
    return found


@attack("markup and YAML in the model's name", "render_model_card")
def markup_in_card(folder, model):
    from huggingface_hub import ModelCard

    (folder / "summary.json").write_text(json.dumps(hostile_summary()))
    card = folder / "README.md"
    files = ["--summary", folder / "summary.json", "--run", "dpo", "--template", "report/model_card.md", "--card", card]
    found = outcome(run("render_model_card", *files), card)
    if found[0] != HARMLESS:
        return found
    head = ModelCard.load(card).data.to_dict()
    if "pwned" in str(head) or head.get("model-index", [{}])[0].get("name") != "dpo":
        return SILENT, f"front matter: {head}"
    if "<script>" in card.read_text() or "<img" in card.read_text() or "1337" in card.read_text():
        return SILENT, "markup is left in the card"
    return found
