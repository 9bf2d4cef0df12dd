"""A gRPC server and client of the lab, on grpcio without generated code: messages are plain bytes.

    grpc_peer.py serve PORT NAME
    grpc_peer.py call TARGET      runs every shape of call once, prints what came of each as JSON
    grpc_peer.py many TARGET N    runs N unary calls on one channel, prints the answering names as JSON
"""

import json
import queue
import sys
import time
from concurrent import futures

import grpc

SERVICE = "lab.Echo"


class Echo(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name.encode()

    def service(self, details):
        shape = details.method.rsplit("/", 1)[1]
        make = {
            "Unary": grpc.unary_unary_rpc_method_handler,
            "Fail": grpc.unary_unary_rpc_method_handler,
            "Slow": grpc.unary_unary_rpc_method_handler,
            "Client": grpc.stream_unary_rpc_method_handler,
            "Server": grpc.unary_stream_rpc_method_handler,
            "Both": grpc.stream_stream_rpc_method_handler,
        }.get(shape)
        return make and make(getattr(self, shape.lower()))

    def unary(self, message, context):
        return self.name + b":" + message[:16] + b":%d" % len(message)

    def fail(self, message, context):
        context.set_trailing_metadata((("x-detail", "in the trailers"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "nothing at 100% here")

    def slow(self, message, context):
        while context.is_active():
            time.sleep(0.01)
        return b""

    def client(self, messages, context):
        return b"%d" % sum(len(message) for message in messages)

    def server(self, message, context):
        for number in range(int(message)):
            yield b"%d" % number

    def both(self, messages, context):
        for message in messages:
            yield b"re:" + message


def serve(port, name):
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Echo(name),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        trailers = {key: value for key, value in error.trailing_metadata() or ()}
        return [error.code().name, error.details(), trailers.get("x-detail", "")]
    return ["OK", "", ""]


def ping_pong(channel):
    """Each message leaves only after the reply to the one before has come."""
    replies = []
    outgoing = queue.Queue()
    stream = channel.stream_stream(f"/{SERVICE}/Both")(iter(outgoing.get, None), timeout=20)
    for number in range(20):
        outgoing.put(b"%d" % number)
        replies.append(next(stream).decode())
    outgoing.put(None)
    replies += [message.decode() for message in stream]
    return replies


def call(target):
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options) as channel:

        def unary(method, message, timeout=20):
            return channel.unary_unary(f"/{SERVICE}/{method}")(message, timeout=timeout)

        result = {
            "unary": unary("Unary", b"hello").decode(),
            "big": unary("Unary", b"x" * (16 << 20)).decode(),
            "client": channel.stream_unary(f"/{SERVICE}/Client")(iter([b"x" * 1000] * 1000), timeout=20).decode(),
            "server": [m.decode() for m in channel.unary_stream(f"/{SERVICE}/Server")(b"1000", timeout=20)],
            "both": ping_pong(channel),
            "fail": failure(lambda: unary("Fail", b"")),
            "unknown": failure(lambda: unary("Nowhere", b"")),
        }
        begun = time.monotonic()
        result["slow"] = failure(lambda: unary("Slow", b"", timeout=0.3))[0]
        result["slow_seconds"] = time.monotonic() - begun
    print(json.dumps(result))


def many(target, count):
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        unary = channel.unary_unary(f"/{SERVICE}/Unary")
        print(json.dumps([unary(b"x", timeout=20).decode().split(":")[0] for _ in range(count)]))


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    {"serve": serve, "call": call, "many": lambda target, n: many(target, int(n))}[verb](*arguments)
