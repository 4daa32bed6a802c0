//go:build tools

// Package controlplane names the programs of a control plane without nodes, for test/infra/kubernetes-control-plane.test.ts:
//
//	cd infra/k8s/control-plane
//	go build -o ../../../tools/ ./etcd k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kube-controller-manager
package controlplane

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver/app"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)
