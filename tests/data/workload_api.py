"""A SPIFFE Workload API on the generated code of the published workload.proto, and a client of other make.

    workload_api.py serve SOCKET DIR     hands out what DIR/now.json names, and again whenever that changes
    workload_api.py fetch SOCKET         prints what the PyPI package `spiffe` makes of it, as JSON

now.json: {"bundle": FILE, "svids": [{"id": ID, "chain": FILE, "key": FILE}], "crl": [FILE]}; files hold DER.
Without svids it denies, as SPIRE does to a process that is registered for nothing.
"""

import json
import os
import sys
import time
from concurrent import futures

import grpc
from spiffe import WorkloadApiClient
from spiffe._proto import workload_pb2, workload_pb2_grpc


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Api(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    def __init__(self, directory):
        self.directory = directory

    def now(self):
        return json.loads(read(os.path.join(self.directory, "now.json")))

    def file(self, name):
        return read(os.path.join(self.directory, name))

    def changes(self, context):
        """What is to be handed out, at once and after every change."""
        if ("workload.spiffe.io", "true") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        last = None
        while context.is_active():
            now = self.now()
            if now != last:
                last = now
                yield now
            # The file is looked at; nobody waits for this.
            time.sleep(0.05)

    def FetchX509SVID(self, request, context):
        for now in self.changes(context):
            if not now["svids"]:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
            response = workload_pb2.X509SVIDResponse(crl=[self.file(name) for name in now.get("crl", [])])
            for svid in now["svids"]:
                response.svids.append(
                    workload_pb2.X509SVID(
                        spiffe_id=svid["id"],
                        x509_svid=self.file(svid["chain"]),
                        x509_svid_key=self.file(svid["key"]),
                        bundle=self.file(now["bundle"]),
                        hint="of the test",
                    )
                )
            yield response

    def FetchX509Bundles(self, request, context):
        for now in self.changes(context):
            lists = [self.file(name) for name in now.get("crl", [])]
            yield workload_pb2.X509BundlesResponse(
                crl=lists,
                bundles={"spiffe://mesh.test": self.file(now["bundle"]), "spiffe://other.test": b"\x30"},
            )


def serve(socket, directory):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(Api(directory), server)
    server.add_insecure_port("unix:" + socket)
    server.start()
    server.wait_for_termination()


def fetch(socket):
    with WorkloadApiClient("unix:" + socket) as client:
        svid = client.fetch_x509_svid()
        bundles = [bundle for bundle in svid.cert_chain]
        print(json.dumps({"id": str(svid.spiffe_id), "chain": len(bundles)}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3])
    else:
        fetch(sys.argv[2])
