"""A request as Ray's and vLLM's own models have it. Runs under Ray."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest, CompletionRequest
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
from vllm.exceptions import VLLMClientError

from reasonscale.serving.budget import BadRequest


def typed_request(body: dict[str, Any], rid: str, chat: bool) -> Any:
    """Return a request as the engine takes it; BadRequest with the field of the first thing that is wrong."""
    kind = ChatCompletionRequest if chat else CompletionRequest
    try:
        request = kind.model_validate(body | {"request_id": rid})
        return _sanitize_chat_completion_request(request) if chat else request
    except ValidationError as error:
        first = error.errors()[0]
        # Names of a union's arms stand between the fields; they are pydantic's, not the client's.
        parts = [str(p) for p in first["loc"] if isinstance(p, int) or str(p) in body or str(p).islower()]
        where = ".".join(parts) or None
        raise BadRequest(f"{where or 'the body'}: {first['msg']}", where) from None
    except VLLMClientError as error:
        field = getattr(error, "parameter", None)
        raise BadRequest(str(error), field if isinstance(field, str) else None) from None
    except ValueError as error:
        raise BadRequest(str(error)) from None
    except (TypeError, AttributeError, KeyError):
        # vLLM's checks run before the types are known: `messages: null` breaks one of them.
        raise BadRequest("a field has a type that it cannot have; see OpenAI's reference for the right ones") from None
