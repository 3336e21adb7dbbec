"""Chat templates against transformers' own rendering; and what a template must not do."""

import time

import pytest

from apr.chat import Conversation, sandbox
from apr.chat.templates import BUILT_IN, ChatTemplate
from apr.errors import InferenceError, InvalidFormat, ModelLoadError, NotFound

chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "user", "content": "Wie heißt 'das' <b> &?\n"},
    {"role": "assistant", "content": " 😀 so "},
    {"role": "user", "content": "{{ 1 }}"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}]
TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"type": "object"}}}]
# In the manners of published templates: what they use of Jinja, each in a few lines.
TEMPLATES = {
    "chatml": BUILT_IN["chatml"],
    "header": "{{- bos_token }}{% for m in messages %}\n  {%- if loop.index0 == 0 %}[{{ m.role }}]"
    "{% endif %}\n<|{{ m['role'] }}|>\n{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "namespace": "{%- set ns = namespace(found=false, n=0) -%}{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}{%- set ns.n = ns.n + 1 -%}{%- set ns.found = true -%}{%- endif -%}"
    "{%- endfor -%}{{ ns.n }} {{ ns.found }}",
    "tools": "{%- if tools is not none and tools %}{{ tools | tojson }}|"
    "{{ tools[0] | tojson(indent=2) }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "slices": "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{{ messages[0].content }}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest[::-1] %}{{ m.content.split('<')[0] }}"
    "{{ '%02d' | format(loop.index) }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "macro": "{% macro say(m, last=false) %}{{ m.role | upper }}: {{ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ say(m, last=loop.last) }}"
    "{% if not loop.last %};{% endif %}{% endfor %}",
    "filters": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content')"
    " | join('|') }}"
    "{{ messages | length }}{{ undefined_name | default('none') }}{{ tools is defined }}"
    "{{ documents is none }}",
}  # fmt: skip


def theirs(source, messages, **variables):
    rendered, _ = chat_template_utils.render_jinja_template(
        conversations=[messages], chat_template=source, **{**TOKENS, **variables}
    )
    return rendered[0]


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("messages", [TALK, SYSTEM + TALK], ids=["talk", "with system"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_the_one_that_transformers_renders(name, messages, prompt):
    ours = ChatTemplate(TEMPLATES[name], TOKENS)
    expected = theirs(TEMPLATES[name], messages, tools=TOOLS, add_generation_prompt=prompt)
    assert ours.render(messages, tools=TOOLS, add_generation_prompt=prompt) == expected
    expected = theirs(TEMPLATES[name], messages, add_generation_prompt=prompt)
    assert ours.render(messages, add_generation_prompt=prompt) == expected


def test_the_date_is_given_as_templates_ask_for_it():
    text = ChatTemplate("{{ strftime_now('%Y') }}").render(TALK)
    assert text == theirs("{{ strftime_now('%Y') }}", TALK)


def test_a_template_that_raises_is_an_error_in_its_own_words():
    strict = ChatTemplate(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    assert strict.render(TALK) == ""
    with pytest.raises(InferenceError, match="refuses this conversation: no system role") as caught:
        strict.render(SYSTEM + TALK)
    assert caught.value.exit_code == 8


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for m in messages %}", "is no valid Jinja.*line 1"),
        ("{{ messages[99].content.nothing }}", "fails"),
        ("{{ 1 / 0 }}", "fails.*division"),
        ("{{ 'a' + 1 }}", "fails"),
        ("{% include 'other' %}", "fails"),
        ("{{ missing() }}", "fails.*missing"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails"),
    ],
)
def test_a_broken_template_is_an_invalid_format(source, says):
    with pytest.raises(InvalidFormat, match=says) as caught:
        ChatTemplate(source).render(TALK)
    assert "\n" not in caught.value.line()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ (messages | attr('__class__')).__bases__ }}",
        "{% set ns = namespace(a=1) %}{% set ns.__class__ = 1 %}",
        "{{ namespace(**{'__class__': 1}) }}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ self.__init__.__globals__ }}{{ cycler.__init__.__globals__.os }}",
        "{% for i in range(99999999) %}{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source):
    talk = [dict(message) for message in TALK]
    try:
        text = ChatTemplate(source).render(talk)
    except InvalidFormat:
        text = ""  # refused; else what it asked for is undefined, which renders as nothing
    assert text == ""
    assert talk == TALK


def test_a_model_without_a_template_says_so_and_what_to_do(tokenizer, chat_tokenizer, tmp_path):
    with pytest.raises(ModelLoadError, match=r"m\.apr: has no chat template; .*--template chatml"):
        ChatTemplate.of(tokenizer, None, "m.apr")
    assert ChatTemplate.of(tokenizer, "chatml").source == BUILT_IN["chatml"]
    assert ChatTemplate.of(chat_tokenizer).source == chat_tokenizer.chat_template
    assert ChatTemplate.of(chat_tokenizer).special_tokens["eos_token"] == "<|endoftext|>"
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}ß", encoding="utf-8")
    assert ChatTemplate.of(tokenizer, str(file)).render(TALK[1:2]) == " 😀 so ß"
    file.write_bytes(b"\xff")
    with pytest.raises(InvalidFormat, match="not UTF-8"):
        ChatTemplate.of(tokenizer, str(file))
    with pytest.raises(NotFound, match="chatml"):
        ChatTemplate.of(tokenizer, "llama9")


def test_what_stands_between_answer_and_question_is_found(chat_tokenizer):
    assert ChatTemplate.of(chat_tokenizer).between() == "<|im_end|>\n<|im_start|>user\n"
    assert ChatTemplate("{{ raise_exception('never') }}").between() == ""
    assert ChatTemplate("{{ messages[-1].content }}").between() == ""


ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% block a %}{% for i in range(2000) %}{{ self.a() }}{% endfor %}{% endblock %}",
    "{% for i in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}",
)


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_without_an_end_is_given_one(source, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    monkeypatch.setattr(sandbox, "SIZE", 500_000)
    with pytest.raises(InvalidFormat, match=r"fails: (takes longer than 0\.2 sec|writes|max)"):
        ChatTemplate(source).render(TALK)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ 'ab' * 99999999999 }}", "a value of 199,999,999,998 elements"),
        ("{{ 999999999 * [1] }}", "a value of 999,999,999 elements"),
        ("{% set n = namespace(s='ab') %}" + "{% set n.s = n.s ~ n.s %}" * 40, "a value of"),
        ("{% set n = namespace(s='ab') %}" + "{% set n.s = n.s + n.s %}" * 40, "a value of"),
        ("{% set s = 'ab' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 40, "writes more than"),
        ("{{ 10 ** 99999999 }}", "a number of too many digits"),
        ("{{ 'x' | center(9999999999) }}", "9,999,999,999 is too large"),
        ("{{ 'x'.ljust(9999999999) }}", "9,999,999,999 is too large"),
        ("{{ '%9999999999d' % 1 }}", "too wide a format"),
    ],
)
def test_a_template_that_would_fill_the_memory_is_stopped_before(source, says, monkeypatch):
    monkeypatch.setattr(sandbox, "SIZE", 1_000_000)
    with pytest.raises(InvalidFormat, match=f"fails: .*{says}"):
        ChatTemplate(source).render(TALK)


def test_a_template_without_an_end_is_waited_for_once(speak, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    template, begun = ChatTemplate(ENDLESS[0]), []
    original = sandbox.Environment.begin
    monkeypatch.setattr(
        sandbox.Environment, "begin", lambda self: begun.append(0) or original(self)
    )
    with pytest.raises(InvalidFormat, match=r"takes longer than 0\.1 seconds"):
        Conversation(speak(), template)
    assert len(begun) == 1


def test_a_template_has_its_time_each_time_anew(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    template = ChatTemplate("{% for i in range(9) %}{{ i ~ '-' + 'x' * 2 }}{% endfor %}")
    for _ in range(3):
        assert template.render(TALK).startswith("0-xx1-xx")
        time.sleep(0.1)
