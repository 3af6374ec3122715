"""What an emulator holds, as AWS's own requests list it: by the resources' ids, for each kind."""

LISTS = [
    ("apigatewayv2", "get_apis", "Items", "ApiId"),
    ("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups", "AutoScalingGroupName"),
    ("autoscaling", "describe_policies", "ScalingPolicies", "PolicyName"),
    ("cloudformation", "describe_stacks", "Stacks", "StackName"),
    ("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
    ("ec2", "describe_launch_templates", "LaunchTemplates", "LaunchTemplateId"),
    ("ec2", "describe_security_groups", "SecurityGroups", "GroupId"),
    ("events", "list_rules", "Rules", "Name"),
    ("iam", "list_instance_profiles", "InstanceProfiles", "InstanceProfileName"),
    ("iam", "list_roles", "Roles", "RoleName"),
    ("iam", "list_users", "Users", "UserName"),
    ("lambda", "list_functions", "Functions", "FunctionName"),
    ("logs", "describe_log_groups", "logGroups", "logGroupName"),
    ("s3", "list_buckets", "Buckets", "Name"),
    ("secretsmanager", "list_secrets", "SecretList", "ARN"),
    ("sns", "list_topics", "Topics", "TopicArn"),
]


def resources(client):
    """All of them, but the policies that AWS itself manages; `client` answers the client of a
    service."""
    held = {
        f"{service} {kind}": [item[id] for item in getattr(client(service), request)().get(kind, [])]
        for service, request, kind, id in LISTS
    }
    policies = client("iam").list_policies(Scope="Local")["Policies"]
    held["iam Policies"] = [policy["Arn"] for policy in policies]
    held["sqs Queues"] = client("sqs").list_queues().get("QueueUrls", [])
    return held
