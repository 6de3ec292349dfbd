from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InferenceRequest(_message.Message):
    __slots__ = ("input_text", "max_length", "model")
    INPUT_TEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    input_text: str
    max_length: int
    model: str
    def __init__(self, input_text: _Optional[str] = ..., max_length: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class InferenceResponse(_message.Message):
    __slots__ = ("result", "latency_ms", "timestamp", "version")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    result: str
    latency_ms: float
    timestamp: str
    version: str
    def __init__(self, result: _Optional[str] = ..., latency_ms: _Optional[float] = ..., timestamp: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class InferencePiece(_message.Message):
    __slots__ = ("text", "finish_reason", "version")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    text: str
    finish_reason: str
    version: str
    def __init__(self, text: _Optional[str] = ..., finish_reason: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: InferenceRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[InferenceRequest, _Mapping]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: InferenceResponse
    error: Error
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[InferenceResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("features", "model")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedScalarFieldContainer[float]
    model: str
    def __init__(self, features: _Optional[_Iterable[float]] = ..., model: _Optional[str] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("prediction", "predictions", "shape", "version")
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    prediction: float
    predictions: _containers.RepeatedScalarFieldContainer[float]
    shape: _containers.RepeatedScalarFieldContainer[int]
    version: str
    def __init__(self, prediction: _Optional[float] = ..., predictions: _Optional[_Iterable[float]] = ..., shape: _Optional[_Iterable[int]] = ..., version: _Optional[str] = ...) -> None: ...
