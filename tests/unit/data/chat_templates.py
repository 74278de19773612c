"""Chat templates: plain, and those that lose thoughts or refuse."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ BODY }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = CHATML.replace("BODY", "message.content")
# As Qwen3's own: thoughts before the last message of the user are left out.
STRIPS = "{% set users = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}" + (
    "{% set users.last = loop.index0 %}{% endif %}{% endfor %}"
    + CHATML.replace(
        "BODY",
        "message.content.split('</think>')[-1].lstrip() if loop.index0 < users.last else message.content",
    )
)
ALWAYS_STRIPS = CHATML.replace("BODY", "message.content.split('</think>')[-1].lstrip()")
COUNTS = "{{ messages | length }} messages\n" + PLAIN
CLOSES = PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
REWRITES = CHATML.replace("BODY", "message.content | replace('<think> ', '<think>\n')")
REFUSES = "{% for m in messages if m.role == 'tool' %}{{ raise_exception('no tools, please') }}{% endfor %}" + PLAIN
