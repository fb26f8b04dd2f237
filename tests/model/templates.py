"""Chat templates that behave as those of model families do. Their tokens are ours; what they do with turns, theirs."""

APPEND_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen's way: what an earlier answer thought is not repeated.
THINKING_STRIPPED = (
    "{% for m in messages %}{% set said = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in said %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ said }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 3's way: a system block with a date that is always there, and trimmed content.
DATED = (
    "{{ '<|begin|>' }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "<|head|>system<|neck|>\n\nToday is {{ strftime_now('%d %b %Y') }}.\n{{ system }}<|eot|>"
    "{% for m in rest %}<|head|>{{ m.role }}<|neck|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|neck|>\n\n{% endif %}"
)
# Mistral's way: what the system says is told before the last question, and roles alternate.
SYSTEM_AT_THE_LAST_QUESTION = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}<s>"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{% if loop.last and system %}[TOOLS]{{ system }}[/TOOLS]{% endif %}[INST] "
    "{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
# DeepSeek R1's way: the assistant begins to think, but is not shown to have.
THINKING_PROMPT = (
    "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == 'assistant' %}"
    "<|Assistant|>{{ m.content.split('</think>')[-1] }}<|end|>{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# Gemma's way: no system role, and the assistant is called model.
NO_SYSTEM = (
    "<bos>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
# Llama 2's way: every exchange begins as a text of its own.
BEGUN_EVERY_TURN = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
# Some merge messages of one role that follow each other.
MERGED = (
    "{% for m in messages %}{% if loop.first or m.role != messages[loop.index0 - 1].role %}<|{{ m.role }}|>"
    "{% else %}{{ '\n\n' }}{% endif %}"
    "{{ m.content }}{% if loop.last or m.role != messages[loop.index0 + 1].role %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NUMBERED = (
    "{% for m in messages %}[{{ loop.index }}] {{ m.role }}: {{ m.content }}\n{% endfor %}["
    "{{ messages | length + 1 }}] assistant:"
)
FORGETFUL = "{{ messages[-1].content }}\nassistant:"
SHOUTING = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}assistant:"

SERVED = {
    "append-only": APPEND_ONLY,
    "thinking stripped": THINKING_STRIPPED,
    "a date in the system block": DATED,
    "tools at the last question": SYSTEM_AT_THE_LAST_QUESTION,
    "a generation prompt that differs": THINKING_PROMPT,
    "no system role": NO_SYSTEM,
    "begun every turn": BEGUN_EVERY_TURN,
    "merged roles": MERGED,
}
REFUSED = {
    "numbers its turns": (NUMBERED, "depends on the turns before"),
    "forgets answers": (FORGETFUL, "does not render what was answered"),
    "changes what is said": (SHOUTING, "does not render what was answered"),
}
