"""cluster.yaml against Ray's own loader and schema, and against a mocked AWS account made by docs/aws.yaml."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
REGION = "us-east-1"
MY_ADDRESS = "203.0.113.7/32"


def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


def run(command: str, home: Path, programs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command of cluster.yaml with shell lines in the place of programs."""
    folder = home / "venv/bin"
    folder.mkdir(parents=True)
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    environment = {"HOME": str(home), "PATH": f"{folder}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)


def test_ray_accepts_it() -> None:
    config = prepare_config(cluster())
    validate_config(config)
    assert config["head_node_type"] == "head"
    assert config["available_node_types"]["head"]["max_workers"] == 0  # never a second head


def test_the_values_to_change_come_first() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    top = text[: text.index("# ---- what a node is")]
    for key in ("cluster_name:", "region:", "&security_groups", "&gpu_instance", "&disk", "max_workers:"):
        assert key in top
        assert key not in text[len(top) :] or key == "max_workers:"


def test_only_the_installation_is_copied_to_the_nodes() -> None:
    mounts = cluster()["file_mounts"]
    local = {source for source in mounts.values() if not source.startswith("~")}
    assert local == {"pyproject.toml", "README.md", "LICENSE", "tuner", "search_spaces", "trainables"}


def test_nothing_but_the_cluster_itself_is_asked_to_listen_beyond_loopback() -> None:
    start = cluster()["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_starts_with_token_authentication(key: str) -> None:
    config = cluster()
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in config["setup_commands"])
    start = config[key][-1]
    assert start.index("RAY_AUTH_MODE=token") < start.index("ray start")


def test_workers_pass_on_that_a_spot_machine_is_taken_away() -> None:
    start = cluster()["worker_start_ray_commands"][-1]
    assert start.index("ray start") < start.index("python -m tuner.cluster.spot --address $RAY_HEAD_IP:6379")


@pytest.mark.parametrize(("torch", "home"), [("13.0", "{cuda}13.0"), ("12.8", "")])
def test_workers_compile_with_the_cuda_of_their_torch(torch: str, home: str, tmp_path: Path) -> None:
    """DeepSpeed refuses another one; where it is not installed, what torch finds by itself is left alone."""
    cuda = f"{tmp_path}/cuda-"
    Path(f"{cuda}13.0").mkdir()
    programs = {"python": f"echo {torch}", "ray": 'echo "$1 CUDA_HOME=$CUDA_HOME"', "nohup": "true"}
    command = cluster()["worker_start_ray_commands"][-1].replace("/usr/local/cuda-", cuda)
    assert run(command, tmp_path, programs).stdout == f"start CUDA_HOME={home.format(cuda=cuda)}\n"


def test_a_worker_whose_ray_does_not_start_says_so(tmp_path: Path) -> None:
    command = cluster()["worker_start_ray_commands"][-1]
    ended = run(command, tmp_path, {"python": "echo 13.0", "ray": "exit 3", "nohup": "true"})
    assert ended.returncode == 3
    assert not (tmp_path / "spot.log").exists()  # nothing watches a worker that is not there


def test_a_package_list_that_is_locked_is_waited_for(tmp_path: Path) -> None:
    (update,) = (command for command in cluster()["setup_commands"] if "apt-get update" in command)
    programs = {"sudo": '"$@"', "sleep": "echo locked", "cloud-init": "exit 2"}
    programs["apt-get"] = "echo . >> ~/tries; [ $(wc -l < ~/tries) -ge 3 ] || exit 100"
    ended = run(update, tmp_path, programs)
    assert (ended.returncode, ended.stdout) == (0, "locked\nlocked\n")


def test_workers_install_the_versions_of_the_head() -> None:
    config = cluster()
    assert config["cluster_synced_files"] == ["~/constraints.txt"]
    assert any("pip install" in command and "-c ~/constraints.txt" in command for command in config["setup_commands"])
    assert "pip freeze" in config["head_setup_commands"][-1]
    assert config["head_setup_commands"][-1].endswith("> ~/constraints.txt")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A mocked AWS account in which docs/aws.yaml was deployed: its outputs."""
    moto = pytest.importorskip("moto", reason="moto stands for AWS: pip install 'm3-tuner[test]'")
    boto3 = pytest.importorskip("boto3", reason="boto3 is what Ray reaches AWS with: pip install 'm3-tuner[aws]'")
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray writes the key pair into ~/.ssh
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(variable, "testing")
        formation = boto3.client("cloudformation", region_name=REGION)
        given = {"Bucket": "m3-tuner-runs", "MyAddress": MY_ADDRESS}
        formation.create_stack(
            StackName="m3-tuner",
            TemplateBody=(ROOT / "docs/aws.yaml").read_text(),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        outputs = formation.describe_stacks(StackName="m3-tuner")["Stacks"][0]["Outputs"]
        yield {output["OutputKey"]: output["OutputValue"] for output in outputs}


@pytest.fixture(scope="module")
def bootstrapped(account: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `ray up` completes it before it starts the first instance."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    text = (ROOT / "cluster.yaml").read_text().replace("sg-00000000000000000", account["SecurityGroup"])
    config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(yaml.safe_load(text)))
    validate_config(config)
    completed: dict[str, Any] = AWSNodeProvider.bootstrap_config(config)
    return completed


def launch(config: dict[str, Any], node_type: str) -> dict[str, Any]:
    """Starts one instance of a node type as Ray's AWS provider does; what EC2 then says of it."""
    import boto3
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-user-node-type": node_type}
    (instance,) = provider.create_node(config["available_node_types"][node_type]["node_config"], tags, 1)
    ec2 = boto3.client("ec2", region_name=REGION)
    described: dict[str, Any] = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    return described


@pytest.mark.integration
def test_a_worker_offers_one_a10g(bootstrapped: dict[str, Any]) -> None:
    for name in ("gpu_spot", "gpu_on_demand"):
        resources = bootstrapped["available_node_types"][name]["resources"]
        assert resources["CPU"] == 4
        assert resources["GPU"] == 1
        assert resources["accelerator_type:A10G"] == 1
    assert "GPU" not in bootstrapped["available_node_types"]["head"]["resources"]


@pytest.mark.parametrize(
    ("name", "instance_type", "market", "profile"),
    [
        ("head", "m6i.xlarge", None, "m3-tuner-head"),
        ("gpu_spot", "g5.xlarge", "spot", "m3-tuner-worker"),
        ("gpu_on_demand", "g5.xlarge", None, "m3-tuner-worker"),
    ],
)
def test_what_is_launched(
    account: dict[str, Any],
    bootstrapped: dict[str, Any],
    name: str,
    instance_type: str,
    market: str | None,
    profile: str,
) -> None:
    asked = bootstrapped["available_node_types"][name]["node_config"]
    assert asked["MetadataOptions"]["HttpTokens"] == "required"
    (disk,) = asked["BlockDeviceMappings"]
    assert disk["DeviceName"] == "/dev/sda1"
    assert disk["Ebs"] == {"VolumeSize": 200, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    assert asked["ImageId"].startswith("resolve:ssm:/aws/service/")

    instance = launch(bootstrapped, name)
    assert instance["InstanceType"] == instance_type
    assert instance.get("InstanceLifecycle") == market
    assert instance["IamInstanceProfile"]["Arn"].endswith(f"instance-profile/{profile}")
    assert [group["GroupId"] for group in instance["SecurityGroups"]] == [account["SecurityGroup"]]
    assert instance["KeyName"] == f"ray-autoscaler_{REGION}"


def test_uploads_that_were_killed_are_not_paid_for_for_ever() -> None:
    """Moto takes no notice of it in a stack."""
    nodes: Any = yaml.compose((ROOT / "docs/aws.yaml").read_text(), Loader=yaml.SafeLoader)
    for name in ("Resources", "RunBucket", "Properties", "LifecycleConfiguration"):
        (nodes,) = (value for key, value in nodes.value if key.value == name)
    (rule,) = yaml.safe_load(yaml.serialize(nodes))["Rules"]
    assert (rule["Status"], rule["AbortIncompleteMultipartUpload"]) == ("Enabled", {"DaysAfterInitiation": 1})


@pytest.mark.usefixtures("bootstrapped")
def test_ssh_from_one_address_is_the_only_way_in(account: dict[str, Any]) -> None:
    import boto3

    groups = boto3.client("ec2", region_name=REGION).describe_security_groups()["SecurityGroups"]
    assert not [group for group in groups if group["GroupName"].startswith("ray-")]  # Ray's own: SSH from anywhere
    (ours,) = (group for group in groups if group["GroupId"] == account["SecurityGroup"])
    ranges = {cidr["CidrIp"]: rule["ToPort"] for rule in ours["IpPermissions"] for cidr in rule["IpRanges"]}
    assert ranges == {MY_ADDRESS: 22}
    peers = {pair["GroupId"] for rule in ours["IpPermissions"] for pair in rule["UserIdGroupPairs"]}
    assert peers == {account["SecurityGroup"]}


@pytest.mark.usefixtures("account")
def test_the_head_starts_tags_and_ends_instances_of_its_own_cluster_only() -> None:
    import boto3

    iam = boto3.client("iam", region_name=REGION)
    policy = iam.get_role_policy(RoleName="m3-tuner-head", PolicyName="autoscaler")["PolicyDocument"]
    named, config = cluster()["cluster_name"], cluster()
    policy = yaml.safe_load(policy) if isinstance(policy, str) else policy  # moto keeps Python's own form
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert statement["Resource"] != "*" or actions == ["ec2:Describe*"]
        conditions = statement.get("Condition", {}).get("StringEquals", {})
        if "ec2:TerminateInstances" in actions:
            assert conditions == {"ec2:ResourceTag/ray-cluster-name": named}
        if actions == ["ec2:CreateTags"]:
            assert conditions == {"ec2:CreateAction": "RunInstances"}
        if actions == ["ec2:RunInstances"] and "instance/*" in str(statement["Resource"]):
            assert conditions == {"aws:RequestTag/ray-cluster-name": named}
            types = statement["Condition"]["StringLike"]["ec2:InstanceType"]
            assert config["available_node_types"]["gpu_spot"]["node_config"]["InstanceType"] in types
        if actions == ["iam:PassRole"]:
            assert conditions == {"iam:PassedToService": "ec2.amazonaws.com"}


@pytest.mark.usefixtures("bootstrapped")
def test_ray_tags_what_it_starts_with_the_name_that_the_policy_asks_for(bootstrapped: dict[str, Any]) -> None:
    tags = {tag["Key"]: tag["Value"] for tag in launch(bootstrapped, "gpu_spot")["Tags"]}
    assert tags["ray-cluster-name"] == cluster()["cluster_name"]


@pytest.mark.usefixtures("account")
def test_without_a_security_group_filled_in_nothing_is_launched(capsys: pytest.CaptureFixture[str]) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws

    with pytest.raises(AssertionError):
        bootstrap_aws(prepare_config(cluster()))
    assert "Failed to detect a security group" in capsys.readouterr().err


def planned(config: dict[str, Any], machines: int, availability: dict[str, float]) -> dict[str, int]:
    """What Ray's autoscaler would launch for so many trials of one GPU each."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    node_types = AutoscalingConfig(configs=config, skip_content_hash=True).get_node_type_configs()
    gpu = ResourceRequestUtil.make({"GPU": 1, "CPU": 3})
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs={name: node_type for name, node_type in node_types.items() if name != "head"},
        max_num_nodes=config["max_workers"],
        resource_requests=ResourceRequestUtil.group_by_count([gpu] * machines),
        recoverable_resource_availabilities=availability,
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    return {launched.instance_type: launched.count for launched in reply.to_launch}


def test_spot_is_asked_first_and_on_demand_serves_when_spot_is_out(bootstrapped: dict[str, Any]) -> None:
    assert planned(bootstrapped, machines=3, availability={}) == {"gpu_spot": 3}
    assert planned(bootstrapped, machines=3, availability={"gpu_spot": 0.0}) == {"gpu_on_demand": 3}
    assert sum(planned(bootstrapped, machines=20, availability={}).values()) == 8
