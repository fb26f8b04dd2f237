"""The tokens of prompts as gRPC has them. Never computes anything of them."""

from batonmesh.v1 import inference_pb2 as pb
from runtime.domain.tools import NO_TOOLS, Toolbox
from runtime.errors import InvalidArgument
from runtime.roles.gateway import GatewayRole, ServedModel
from runtime.services.openai.tokenizing import TokenizingPool
from runtime.wire import fields
from runtime.wire.inference import unpack_prompt

INLINE_BYTES = 16 << 10


class Prompts:
    """Prompts of more than `inline_bytes` are tokenized off the event loop."""

    def __init__(self, role: GatewayRole, pool: TokenizingPool, inline_bytes: int = INLINE_BYTES) -> None:
        self._role = role
        self._pool = pool
        self._inline_bytes = inline_bytes

    def model(self, name: str) -> ServedModel:
        """Raises `NotFound`."""
        return self._role.served(fields.name(name, "model", 256))

    async def tokens(self, model: ServedModel, message: pb.Prompt, toolbox: Toolbox = NO_TOOLS) -> tuple[int, ...]:
        """Raises as `unpack_prompt`, and `InvalidArgument` for tools that a prompt without messages cannot tell of."""
        prompt, tokenizer = unpack_prompt(message), model.tokenizer
        tools = [tool.for_template for tool in toolbox.tools] if toolbox.callable else []
        if tools and not isinstance(prompt, list):
            raise InvalidArgument("tools need prompt.chat, which tells the model of them", field="tools")
        if isinstance(prompt, tuple):
            return prompt

        def tokenize() -> list[int]:
            return tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.render_chat(prompt, tools)

        told = sum(len(tool.parameters) + len(tool.description) for tool in toolbox.tools)
        if message.ByteSize() + told <= self._inline_bytes:
            return tuple(tokenize())
        return tuple(await self._pool.run(tokenize))
