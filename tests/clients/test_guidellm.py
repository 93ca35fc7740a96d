"""guidellm: a load of streams, of which none is refused or broken."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from artifact_stand_in import MODEL, write_artifact
from client_environments import python_with
from patience import PATIENCE
from serving_process import ServingProcess

pytestmark = pytest.mark.exhaustive

REQUESTS = 12


@pytest.mark.parametrize("api", ["/v1/chat/completions", "/v1/completions"])
def test_every_request_is_answered(tmp_path: Path, api: str) -> None:
    data, report = tmp_path / "prompts.jsonl", tmp_path / "report.json"
    data.write_text("".join(json.dumps({"prompt": f"the quick brown fox {index}"}) + "\n" for index in range(REQUESTS)))
    artifact = write_artifact(tmp_path / "artifact")
    with ServingProcess(artifact) as server:
        server.ready()
        program = [python_with("guidellm", "guidellm==0.8.1"), "-P", "-m", "guidellm", "run", "--disable-progress"]
        program += ["--backend", f"kind=openai_http,target={server.url},model={MODEL},request_format={api},max_tokens=8"]
        program += ["--profile", "kind=concurrent,streams=3", "--constraint", f"kind=max_requests,count={REQUESTS}"]
        program += ["--tokenizer", f"kind=huggingface_auto,model={artifact / 'tokenizer'}"]
        program += ["--data", f"kind=json_file,path={data}", "--output", f"kind=json,path={report}"]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
        command = [str(each) for each in program]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    counts = {kind: len(benchmark["requests"][kind] or []) for kind in ("successful", "incomplete", "errored")}
    assert counts == {"successful": REQUESTS, "incomplete": 0, "errored": 0}
