"""A gRPC server that knows grpc.health.v1.Health/Check alone, on grpcio without generated code. (grpcio itself imports
a `grpc_health` where there is one: this file has another name.)

    health_peer.py PORT FILE      SERVING while FILE is there, else NOT_SERVING
"""

import os
import sys
from concurrent import futures

import grpc


class Health(grpc.GenericRpcHandler):
    def __init__(self, file):
        self.file = file

    def service(self, details):
        if details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(self.check)

    def check(self, request, context):
        # The field `service` (1) of the request; the field `status` (1) of the response.
        if request != b"\x0a\x04shop":
            context.abort(grpc.StatusCode.NOT_FOUND, "only shop is known here")
        return b"\x08\x01" if os.path.exists(self.file) else b"\x08\x02"


port, file = sys.argv[1:]
server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((Health(file),))
server.add_insecure_port(f"[::]:{port}")
server.start()
server.wait_for_termination()
