# Three sets of rights, as JSON in infra/iam, and a role for each that somebody is trusted with. backup is for
# pgBackRest on the database hosts, archive for pgvigil itself, drill for pgBackRest where drills run: it reads
# the repository and can change nothing in it.

locals {
  policies = toset(["backup", "archive", "drill"])
}

resource "aws_iam_policy" "this" {
  for_each = local.policies

  name = "${var.prefix}-${each.key}"
  tags = var.tags
  policy = templatefile("${path.module}/../iam/${each.key}.json", {
    repository = aws_s3_bucket.this["repository"].bucket
    archive    = aws_s3_bucket.this["archive"].bucket
    reports    = aws_s3_bucket.this["reports"].bucket
    key        = aws_kms_key.this.arn
  })
}

data "aws_iam_policy_document" "trust" {
  for_each = var.trusted

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "AWS"
      identifiers = each.value
    }
  }
}

resource "aws_iam_role" "this" {
  for_each = var.trusted

  name               = "${var.prefix}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
  tags               = var.tags
}

resource "aws_iam_role_policy_attachment" "this" {
  for_each = var.trusted

  role       = aws_iam_role.this[each.key].name
  policy_arn = aws_iam_policy.this[each.key].arn
}
