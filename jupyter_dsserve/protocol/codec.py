"""Between our dataclasses and the messages of worker.proto. The only place that knows both."""

from __future__ import annotations

from collections.abc import Sequence

from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest, error_named
from jupyter_dsserve.protocol.request import (
    Chunk,
    Features,
    FinishReason,
    Likely,
    Message,
    Pair,
    Request,
    SamplingParams,
    Structure,
    StructureKind,
    Text,
    Texts,
    Times,
    TokenLogprob,
    ToolCall,
    Tools,
    Usage,
)
from jupyter_dsserve.protocol.tensors import ModelInfo, Tensor, TensorInfo


def submit(request: Request) -> pb.ToWorker:
    message = pb.Submit(
        request_id=request.id,
        sampling=_sampling_to_pb(request.sampling),
        priority=request.priority,
        timeout_s=request.timeout_s,
    )
    prompt = request.prompt
    if isinstance(prompt, str):
        message.text = prompt
    elif isinstance(prompt, Texts):
        message.texts.CopyFrom(_texts_to_pb(prompt.texts))
    elif isinstance(prompt, Features):
        message.features.CopyFrom(pb.Features(tensors=map(_tensor_to_pb, prompt.tensors)))
    elif prompt and isinstance(prompt[0], Message):
        turns = [_turn_to_pb(m) for m in prompt if isinstance(m, Message)]
        message.chat.CopyFrom(pb.Chat(messages=turns, tools=_tools_to_pb(request.tools) if request.tools else None))
    else:
        message.tokens.CopyFrom(pb.Tokens(ids=[t for t in prompt if isinstance(t, int)]))
    return pb.ToWorker(submit=message)


def request_from(message: pb.Submit) -> Request:
    """Raises `InvalidRequest` if the message carries no prompt."""
    kind = message.WhichOneof("prompt")
    prompt: str | tuple[int, ...] | tuple[Message, ...] | Texts | Features
    tools = None
    if kind == "text":
        prompt = message.text
    elif kind == "tokens":
        prompt = tuple(message.tokens.ids)
    elif kind == "chat":
        prompt = tuple(map(_turn_from_pb, message.chat.messages))
        tools = _tools_from_pb(message.chat.tools) if message.chat.HasField("tools") else None
    elif kind == "texts":
        prompt = Texts(_texts_from_pb(message.texts))
    elif kind == "features":
        prompt = Features(tuple(map(_tensor_from_pb, message.features.tensors)))
    else:
        raise InvalidRequest(f"request {message.request_id} carries no prompt", param="prompt")
    timeout_s = message.timeout_s if message.HasField("timeout_s") else None
    return Request(message.request_id, prompt, _sampling_from_pb(message.sampling), message.priority, timeout_s, tools)


def _turn_to_pb(turn: Message) -> pb.Message:
    calls = [pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in turn.tool_calls]
    return pb.Message(
        role=turn.role, content=turn.content, name=turn.name, tool_calls=calls, tool_call_id=turn.tool_call_id
    )


def _turn_from_pb(turn: pb.Message) -> Message:
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in turn.tool_calls)
    return Message(turn.role, turn.content, turn.name, calls, turn.tool_call_id)


def _tools_to_pb(tools: Tools) -> pb.Tools:
    return pb.Tools(functions=tools.functions, required=tools.required, is_parallel=tools.is_parallel)


def _tools_from_pb(tools: pb.Tools) -> Tools:
    return Tools(tools.functions, tuple(tools.required), tools.is_parallel)


def _texts_to_pb(texts: Sequence[Text]) -> pb.Texts:
    pairs = [text for text in texts if isinstance(text, Pair)]
    if len(pairs) == len(texts) > 1 and all(pair.first == pairs[0].first for pair in pairs):
        return pb.Texts(texts=[pb.Text(second=pair.second) for pair in pairs], first=pairs[0].first)
    return pb.Texts(texts=map(_text_to_pb, texts))


def _texts_from_pb(message: pb.Texts) -> tuple[Text, ...]:
    if message.HasField("first"):
        first = message.first  # once: all pairs share it
        return tuple(Pair(first, text.second) for text in message.texts)
    return tuple(map(_text_from_pb, message.texts))


def _text_to_pb(text: Text) -> pb.Text:
    if isinstance(text, Pair):
        return pb.Text(text=text.first, second=text.second)
    return pb.Text(text=text) if isinstance(text, str) else pb.Text(tokens=pb.Tokens(ids=text))


def _text_from_pb(message: pb.Text) -> Text:
    if message.HasField("second"):
        return Pair(message.text, message.second)
    return tuple(message.tokens.ids) if message.HasField("tokens") else message.text


def _tensor_to_pb(tensor: Tensor) -> pb.Tensor:
    return pb.Tensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, data=tensor.data)


def _tensor_from_pb(message: pb.Tensor) -> Tensor:
    return Tensor(message.name, message.datatype, tuple(message.shape), message.data)


def _sampling_to_pb(s: SamplingParams) -> pb.Sampling:
    return pb.Sampling(
        max_tokens=s.max_tokens,
        temperature=s.temperature,
        top_p=s.top_p,
        top_k=s.top_k,
        seed=s.seed,
        stop=s.stop,
        ignore_eos=s.ignore_eos,
        min_p=s.min_p,
        repetition_penalty=s.repetition_penalty,
        presence_penalty=s.presence_penalty,
        frequency_penalty=s.frequency_penalty,
        logit_bias=dict(s.logit_bias),
        stop_token_ids=s.stop_token_ids,
        min_tokens=s.min_tokens,
        logprobs=s.logprobs,
        structure=_structure_to_pb(s.structure) if s.structure else None,
        echo=s.echo,
    )


def _sampling_from_pb(s: pb.Sampling) -> SamplingParams:
    return SamplingParams(
        max_tokens=s.max_tokens if s.HasField("max_tokens") else None,
        temperature=s.temperature,
        top_p=s.top_p,
        top_k=s.top_k,
        seed=s.seed if s.HasField("seed") else None,
        stop=tuple(s.stop),
        ignore_eos=s.ignore_eos,
        min_p=s.min_p,
        repetition_penalty=s.repetition_penalty,
        presence_penalty=s.presence_penalty,
        frequency_penalty=s.frequency_penalty,
        logit_bias=tuple(sorted(s.logit_bias.items())),
        stop_token_ids=tuple(s.stop_token_ids),
        min_tokens=s.min_tokens,
        logprobs=s.logprobs if s.HasField("logprobs") else None,
        structure=_structure_from_pb(s.structure) if s.HasField("structure") else None,
        echo=s.echo,
    )


def _structure_to_pb(s: Structure) -> pb.Structure:
    return pb.Structure(kind=s.kind.value, source=s.source, param=s.param)


def _structure_from_pb(s: pb.Structure) -> Structure:
    return Structure(StructureKind(s.kind), s.source, s.param)


def chunk_to_pb(chunk: Chunk) -> pb.Chunk:
    message = pb.Chunk(
        request_id=chunk.request_id,
        text=chunk.text,
        num_tokens=chunk.num_tokens,
        tensors=map(_tensor_to_pb, chunk.tensors),
    )
    if chunk.finish_reason is not None:
        message.finish_reason = chunk.finish_reason.value
    if chunk.usage is not None:
        message.usage.prompt_tokens = chunk.usage.prompt_tokens
        message.usage.completion_tokens = chunk.usage.completion_tokens
        message.usage.cached_tokens = chunk.usage.cached_tokens
    if chunk.error is not None:
        message.error.CopyFrom(error_to_pb(chunk.error))
    if times := chunk.times:
        message.times.arrived_s = times.arrived_s
        message.times.tokenized_s = times.tokenized_s
        message.times.admitted_s = times.admitted_s
        message.times.first_token_s = times.first_token_s
        message.times.ended_s = times.ended_s
        message.times.num_steps = times.num_steps
    for one in chunk.logprobs:
        top = [pb.Likely(text=likely.text, logprob=likely.logprob) for likely in one.top]
        message.logprobs.add(text=one.text, logprob=one.logprob, offset=one.offset, top=top)
    return message


def chunk_from_pb(message: pb.Chunk) -> Chunk:
    if not (message.finish_reason or message.logprobs or message.tensors):  # nearly all of them, and one a token
        return Chunk(message.request_id, message.text, message.num_tokens)
    return Chunk(
        message.request_id,
        message.text,
        message.num_tokens,
        FinishReason(message.finish_reason) if message.finish_reason else None,
        _usage_from_pb(message.usage) if message.HasField("usage") else None,
        error_from_pb(message.error) if message.HasField("error") else None,
        tuple(map(_tensor_from_pb, message.tensors)),
        tuple(map(_logprob_from_pb, message.logprobs)),
        times=_times_from_pb(message.times) if message.HasField("times") else None,
    )


def _times_from_pb(t: pb.Times) -> Times:
    return Times(t.arrived_s, t.tokenized_s, t.admitted_s, t.first_token_s, t.ended_s, t.num_steps)


def _logprob_from_pb(one: pb.TokenLogprob) -> TokenLogprob:
    logprob = one.logprob if one.HasField("logprob") else None
    return TokenLogprob(one.text, logprob, one.offset, tuple(Likely(t.text, t.logprob) for t in one.top))


def info_to_pb(info: ModelInfo) -> pb.ModelInfo:
    inputs, outputs = (
        [pb.TensorInfo(name=t.name, datatype=t.datatype, shape=t.shape) for t in side]
        for side in (info.inputs, info.outputs)
    )
    times = [pb.StepTime(batch=batch, seconds=seconds) for batch, seconds in info.step_times]
    return pb.ModelInfo(
        inputs=inputs,
        outputs=outputs,
        labels=info.labels,
        note=info.note,
        step_times=times,
        tool_format=info.tool_format,
    )


def info_from_pb(message: pb.ModelInfo) -> ModelInfo:
    inputs, outputs = (
        tuple(TensorInfo(t.name, t.datatype, tuple(t.shape)) for t in side)
        for side in (message.inputs, message.outputs)
    )
    times = tuple((t.batch, t.seconds) for t in message.step_times)
    return ModelInfo(inputs, outputs, tuple(message.labels), message.note, times, message.tool_format)


def _usage_from_pb(usage: pb.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def error_to_pb(error: DSServeError) -> pb.Error:
    return pb.Error(name=type(error).__name__, message=error.message, param=error.param or "")


def error_from_pb(message: pb.Error) -> DSServeError:
    return error_named(message.name, message.message, message.param or None)
