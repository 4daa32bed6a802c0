# syntax=docker/dockerfile:1
# VersityGW, an S3 over a folder, as an ordinary user and with the users that S3_USERS names (infra/compose/s3-start.sh).
# Its folder is made here, because a volume takes its owner from the image.
FROM ghcr.io/versity/versitygw:v1.8.0
COPY --chmod=0755 s3-start.sh /usr/local/bin/s3-start.sh
RUN mkdir /data && chown 10001:10001 /data
USER 10001:10001
EXPOSE 7070
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s \
    CMD ["wget", "--quiet", "--output-document=/dev/null", "http://127.0.0.1:7070/health"]
ENTRYPOINT ["/usr/local/bin/s3-start.sh"]
