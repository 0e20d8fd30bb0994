"""Whether the api or the worker of this container is well, for HEALTHCHECK: exit status 0 or 1, with its own words.

python healthy.py livez     the process answers
python healthy.py readyz    and does its work: an entry posted now would be answered; a worker has its shards
"""

import http.client
import os
import sys

LIMIT_S = 4.0


def main(question: str) -> str | None:
    """None when all is well, else why not."""
    ports = os.environ.get("ROLLCAST_PORT", "8000"), os.environ.get("ROLLCAST_METRICS_PORT", "9101")
    for port in map(int, ports):  # an api listens on the first, a worker on the second
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        try:
            connection.request("GET", f"/{question}")
            answer = connection.getresponse()
            said = answer.read(2000).decode(errors="replace").strip()
            return None if answer.status == 200 else f"{question} answered {answer.status}: {said}"
        except ConnectionRefusedError:
            continue
        except (OSError, http.client.HTTPException) as error:
            return f"port {port}: {error or type(error).__name__}"
        finally:
            connection.close()
    return f"nothing listens on port {' or '.join(ports)}"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("livez", "readyz"):
        sys.exit("expected one word, livez or readyz")
    sys.exit(main(sys.argv[1]))
