"""What moto's CloudFormation lacks of what our templates use.

A resource of a type that moto does not know is refused here, where moto leaves it out. The types
below are made known: their resources are made as a person would make them, by a request to the
emulator itself, so that boto3 checks their properties against AWS's own models of these requests.
"""

import functools
import json
import re

from moto.cloudformation import parsing
from moto.cloudformation.exceptions import ValidationError
from moto.cloudformation.models import ChangeSet, Stack
from moto.cloudformation.responses import CloudFormationResponse
from moto.core.common_models import CloudFormationModel
from moto.iam.access_control import PermissionResult
from moto.s3.models import FakeBucket
from moto.secretsmanager.models import secretsmanager_backends
from moto.ssm.models import ssm_backends

# moto finds the types by CloudFormationModel.__subclasses__(), which keeps none alive.
known = []


def install(aws):
    """Extends moto; `aws` answers a client of the emulator for a service."""
    refuse_unknown_types()
    resolve_dynamic_references()
    see_references_in_sub()
    apply_change_sets()
    admit_to_buckets()
    learn = functools.partial(resource, aws)
    learn(
        "AWS::ApiGatewayV2::Api",
        create=lambda aws, name, wanted: aws("apigatewayv2").create_api(**wanted)["ApiId"],
        update=lambda aws, id, wanted: aws("apigatewayv2").update_api(
            ApiId=id, **without(wanted, "ProtocolType")
        ),
        delete=lambda aws, id, wanted: aws("apigatewayv2").delete_api(ApiId=id),
    )
    learn(
        "AWS::ApiGatewayV2::Integration",
        create=lambda aws, name, wanted: aws("apigatewayv2").create_integration(**wanted)[
            "IntegrationId"
        ],
        update=lambda aws, id, wanted: aws("apigatewayv2").update_integration(
            IntegrationId=id, **wanted
        ),
        delete=part_of_api,
    )
    learn(
        "AWS::ApiGatewayV2::Route",
        create=lambda aws, name, wanted: aws("apigatewayv2").create_route(**wanted)["RouteId"],
        update=lambda aws, id, wanted: aws("apigatewayv2").update_route(RouteId=id, **wanted),
        delete=part_of_api,
    )
    learn(
        "AWS::ApiGatewayV2::Stage",
        create=lambda aws, name, wanted: aws("apigatewayv2").create_stage(**wanted)["StageName"],
        update=lambda aws, id, wanted: aws("apigatewayv2").update_stage(**wanted),
        delete=part_of_api,
    )
    learn(
        "AWS::SQS::QueuePolicy",
        create=put_queue_policy,
        update=put_queue_policy,
        # It goes with its queue.
        delete=lambda aws, id, wanted: None,
    )
    # moto knows it, but neither that it is private nor what expires in it, and deletes it full.
    learn(
        "AWS::S3::Bucket",
        create=make_bucket,
        update=set_up_bucket,
        delete=lambda aws, id, wanted: aws("s3").delete_bucket(Bucket=id),
    )
    learn(
        "AWS::S3::BucketPolicy",
        create=put_bucket_policy,
        update=put_bucket_policy,
        # It goes with its bucket.
        delete=lambda aws, id, wanted: None,
    )
    learn(
        "AWS::Lambda::EventInvokeConfig",
        create=put_invoke_config,
        update=put_invoke_config,
        # It goes with its function.
        delete=lambda aws, id, wanted: None,
    )
    # moto knows it, but not how to change it.
    learn(
        "AWS::IAM::ManagedPolicy",
        create=create_policy,
        update=change_policy,
        delete=lambda aws, id, wanted: aws("iam").delete_policy(PolicyArn=id),
    )
    learn(
        "AWS::CloudWatch::Alarm",
        create=put_alarm,
        update=put_alarm,
        delete=lambda aws, id, wanted: aws("cloudwatch").delete_alarms(AlarmNames=[id]),
    )
    learn(
        "AWS::AutoScaling::ScalingPolicy",
        create=put_scaling_policy,
        update=put_scaling_policy,
        delete=lambda aws, id, wanted: aws("autoscaling").delete_policy(PolicyName=name_of(id)),
    )


def part_of_api(aws, id, wanted):
    """Goes with its API, which may have gone before."""


def put_queue_policy(aws, name, wanted):
    policy = json.dumps(wanted["PolicyDocument"])
    for queue in wanted["Queues"]:
        aws("sqs").set_queue_attributes(QueueUrl=queue, Attributes={"Policy": policy})
    return name


def make_bucket(aws, name, wanted):
    place = {"LocationConstraint": aws("s3").meta.region_name}
    aws("s3").create_bucket(Bucket=name, CreateBucketConfiguration=place)
    return set_up_bucket(aws, name, wanted)


def set_up_bucket(aws, name, wanted):
    """S3 itself calls some properties by other names than CloudFormation does."""
    wanted = dict(wanted)
    s3 = aws("s3")
    encryption = wanted.pop("BucketEncryption")["ServerSideEncryptionConfiguration"]
    rules = [
        {"ApplyServerSideEncryptionByDefault": rule["ServerSideEncryptionByDefault"]}
        for rule in encryption
    ]
    s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": rules})
    lifecycle = wanted.pop("LifecycleConfiguration")["Rules"]
    s3.put_bucket_lifecycle_configuration(
        Bucket=name,
        LifecycleConfiguration={"Rules": [lifecycle_rule(**rule) for rule in lifecycle]},
    )
    s3.put_public_access_block(
        Bucket=name,
        PublicAccessBlockConfiguration=wanted.pop("PublicAccessBlockConfiguration"),
    )
    s3.put_bucket_ownership_controls(Bucket=name, OwnershipControls=wanted.pop("OwnershipControls"))
    if wanted:
        raise ValidationError(message=f"the emulator's buckets have no {', '.join(wanted)}")
    return name


def lifecycle_rule(Id, Status, Prefix="", ExpirationInDays=None, AbortIncompleteMultipartUpload=None):
    rule = {"ID": Id, "Status": Status, "Filter": {"Prefix": Prefix}}
    if ExpirationInDays is not None:
        rule["Expiration"] = {"Days": int(ExpirationInDays)}
    if AbortIncompleteMultipartUpload is not None:
        days = int(AbortIncompleteMultipartUpload["DaysAfterInitiation"])
        rule["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": days}
    return rule


def put_bucket_policy(aws, name, wanted):
    policy = json.dumps(wanted["PolicyDocument"])
    aws("s3").put_bucket_policy(Bucket=wanted["Bucket"], Policy=policy)
    return name


def put_invoke_config(aws, name, wanted):
    aws("lambda").put_function_event_invoke_config(**wanted)
    return name


def create_policy(aws, name, wanted):
    document = json.dumps(wanted["PolicyDocument"])
    answer = aws("iam").create_policy(
        PolicyName=name, PolicyDocument=document, Description=wanted["Description"]
    )
    return answer["Policy"]["Arn"]


def change_policy(aws, id, wanted):
    document = json.dumps(wanted["PolicyDocument"])
    aws("iam").create_policy_version(PolicyArn=id, PolicyDocument=document, SetAsDefault=True)


def put_alarm(aws, name, wanted):
    aws("cloudwatch").put_metric_alarm(AlarmName=name, **wanted)
    return name


def put_scaling_policy(aws, id, wanted):
    autoscaling, name = aws("autoscaling"), name_of(id)
    autoscaling.put_scaling_policy(PolicyName=name, **wanted)
    # moto's answer lacks the ARN.
    return autoscaling.describe_policies(PolicyNames=[name])["ScalingPolicies"][0]["PolicyARN"]


def name_of(id):
    """A policy's name, which its ARN ends in."""
    return id.split("policyName/")[-1]


def without(properties, *names):
    return {name: value for name, value in properties.items() if name not in names}


def resource(aws, type_name, create, update, delete):
    """Makes resources of this type known: how to make one, which answers its id, and so on."""

    class Resource(CloudFormationModel):
        # moto takes the second part for the name of a service.
        __module__ = "tests.cloudformation"

        def __init__(self, id):
            self.physical_resource_id = id

        @staticmethod
        def cloudformation_type():
            return type_name

        @staticmethod
        def cloudformation_name_type():
            return ""

        @classmethod
        def create_from_cloudformation_json(cls, name, wanted, account, region, **_):
            return cls(create(aws, name, wanted["Properties"]))

        @classmethod
        def update_from_cloudformation_json(
            cls, original_resource, new_resource_name, cloudformation_json, account_id, region_name
        ):
            wanted = cloudformation_json["Properties"]
            update(aws, original_resource.physical_resource_id, wanted)
            return original_resource

        @classmethod
        def delete_from_cloudformation_json(cls, id, wanted, account, region):
            delete(aws, id, wanted["Properties"])

    known.append(Resource)


def refuse_unknown_types():
    original = parsing.resource_class_from_type

    def resource_class_from_type(type_name):
        found = original(type_name)
        if found is None:
            raise ValidationError(message=f"the emulator cannot make a resource of {type_name}")
        return found

    parsing.resource_class_from_type = resource_class_from_type


def resolve_dynamic_references():
    """{{resolve:secretsmanager:…}} and {{resolve:ssm:…}} become what they refer to."""
    original = parsing.parse_resource

    def parse_resource(resource_json, resources_map):
        kind, cleaned, type_name = original(resource_json, resources_map)
        resolve = functools.partial(
            resolved, account=resources_map._account_id, region=resources_map._region_name
        )
        cleaned = each_text(cleaned, resolve)
        if type_name == "AWS::IAM::Role":
            # moto keeps them as Python writes them.
            for policy in cleaned["Properties"].get("Policies", []):
                policy["PolicyDocument"] = json.dumps(policy["PolicyDocument"])
        return kind, cleaned, type_name

    parsing.parse_resource = parse_resource


SECRET = re.compile(
    r"\{\{resolve:secretsmanager:(?P<id>arn(?::[^:}]+){6}|[^:}]+):SecretString:(?P<key>[^:}]+)"
    r"::(?P<version>[^:}]+)\}\}"
)
PARAMETER = re.compile(r"\{\{resolve:ssm:(?P<name>[^:}]+)\}\}")


def resolved(text, account, region):
    def secret(reference):
        value = secretsmanager_backends[account][region].get_secret_value(
            reference["id"], reference["version"], ""
        )
        return json.loads(value["SecretString"])[reference["key"]]

    def parameter(reference):
        return ssm_backends[account][region].get_parameter(reference["name"]).value

    text = PARAMETER.sub(parameter, SECRET.sub(secret, text))
    if "{{resolve:" in text:
        raise ValueError(f"cannot resolve {text}")
    return text


def each_text(value, change):
    match value:
        case str():
            return change(value)
        case dict():
            return {name: each_text(part, change) for name, part in value.items()}
        case list():
            # moto leaves an AWS::NoValue in a list as it is.
            return [each_text(part, change) for part in value if part is not None]
        case _:
            return value


def see_references_in_sub():
    """A resource changes with a parameter that only a Fn::Sub of it names."""
    original = parsing.get_references_from_template

    def get_references_from_template(template):
        references = original(template)
        each_text(
            template, lambda text: references.extend(re.findall(r"\$\{([^!}.]+)\}", text)) or text
        )
        return references

    parsing.get_references_from_template = get_references_from_template


def admit_to_buckets():
    """Ours may be spoken to by TLS only, which the emulator does not speak."""
    FakeBucket.get_permission = lambda bucket, action, resource: PermissionResult.NEUTRAL


def apply_change_sets():
    """A change set brings its stack's outputs up to date as well, makes what no condition holds
    back any more, and removes what one holds back now. One without a change is made, and fails;
    moto refuses to make it."""
    update = parsing.parse_and_update_resource

    def parse_and_update_resource(logical_id, wanted, resources, **place):
        if resources._parsed_resources.get(logical_id) is None:
            # To look at what does not exist makes it, if its condition allows that.
            return resources[logical_id]
        updated = update(logical_id, wanted, resources, **place)
        if updated is None:
            raise ValidationError(message=f"the emulator cannot change the resource {logical_id}")
        return updated

    def apply(change_set):
        stack = change_set.stack
        # Of parameters that nobody set, moto takes the default for a change.
        stack.resource_map.input_parameters = stack.stack_parameters
        stack.resource_map.update(change_set.template_dict, change_set.parameters)
        follow_conditions(stack.resource_map)
        stack.template = change_set.template
        stack._parse_template()
        stack.output_map = stack._create_output_map()

    def follow_conditions(resources):
        made = resources._parsed_resources
        for logical_id, wanted in reversed(resources._resource_json_map.items()):
            if resources.lazy_condition_map.get(wanted.get("Condition"), True):
                # To look at what does not exist makes it.
                resources[logical_id]
            elif made.get(logical_id) is not None:
                resources._delete_resource(made.pop(logical_id), wanted)

    def has_parameters(stack, others):
        known = as_texts(stack.stack_parameters)
        return known | as_texts(others) == known

    def as_texts(parameters):
        return {
            name: ",".join(value) if isinstance(value, list) else str(value)
            for name, value in parameters.items()
        }

    parsing.parse_and_update_resource = parse_and_update_resource
    ChangeSet.apply = apply
    Stack.has_parameters = has_parameters
    CloudFormationResponse._validate_different_update = lambda *_: None
