# What infra/aws/deploy and infra/aws/destroy share: what their things are called.
# Sourced by bash scripts that run under `set -euo pipefail`.

# shellcheck shell=bash disable=SC2034 # its variables are for those who source it
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

stack=${STACK:-compose-ci}
workers_stack=$stack-workers
secret=$stack/secrets

# The CLI's version 2 would show what it prints in a pager.
export AWS_PAGER=""

# check_aws: ends the script unless there is a CLI with credentials and a region; sets $account
# and $bucket.
check_aws() {
    need aws "install the AWS CLI, version 1 or 2"
    need jq "install jq"
    [[ $stack =~ ^[a-z][a-z0-9-]{0,29}$ ]] \
        || die "STACK: must be up to 30 small letters, digits and hyphens, and begin with a letter"
    # The CLI itself reads AWS_REGION only from version 2 on.
    export AWS_DEFAULT_REGION=${AWS_REGION:-${AWS_DEFAULT_REGION:-$(aws configure get region || true)}}
    [ -n "$AWS_DEFAULT_REGION" ] || die "AWS_REGION: missing, and the AWS CLI has no default"
    account=$(aws sts get-caller-identity --query Account --output text) \
        || die "the AWS CLI has no credentials that work (its own message stands above)"
    # Bucket names belong to all of AWS.
    bucket=$stack-$account-$AWS_DEFAULT_REGION
}

# describe STACK: fails if there is no such stack; sets what `output` and `parameter` read.
describe() {
    if description=$(aws cloudformation describe-stacks --stack-name "$1" --output json 2>&1); then
        return 0
    fi
    [[ $description == *"does not exist"* ]] || die "$description"
    return 1
}

# output NAME: of the stack that was described last; nothing if it never came to be.
output() {
    jq --raw-output --arg name "$1" \
        '.Stacks[0].Outputs // [] | .[] | select(.OutputKey == $name).OutputValue' <<<"$description"
}

# parameter NAME: of the stack that was described last.
parameter() {
    jq --raw-output --arg name "$1" \
        '.Stacks[0].Parameters[] | select(.ParameterKey == $name).ParameterValue' <<<"$description"
}

delete_stack() {
    say "deleting the stack $1"
    aws cloudformation delete-stack --stack-name "$1"
    aws cloudformation wait stack-delete-complete --stack-name "$1"
}
